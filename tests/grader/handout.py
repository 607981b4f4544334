"""The student's repository: ours without the bodies asked for, with a handout in English and Chinese."""
import os
import re
from pathlib import Path

from lessons import lesson, title

from grader import chinese, english
from grader.language import IMPORTS
from grader.problems import ALL, FILES, PROBLEMS, ROOT, Mistake, needed_by
from grader.sources import blanked, for_students, repository, version, write_to

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(?:#[^)\s]*)?\)")  # of markdown: picture?, words, file
HEADINGS = "Teaching with it|用它教学|How fast is it|它有多快"  # of what is done with files left out
STAYS = re.compile(rf"^## (?:{HEADINGS})\n.*?(?=^## |\Z)", re.M | re.S)
MADE_BY = r"`?[^`\n]*(?:tests/(?:assignment|mutants)\.py|\.ci/run)[^`\n]*`?"
DEAD = re.compile(rf"<!-- [^>]*{MADE_BY}[^>]* -->\n+|[;；][^;；.。]*{MADE_BY}(?=[.。])")


def page(file):
    """The text of a page without what a student has no use for: sections, paragraphs, commands, figures of
    scripts that stay here; a link to what stays here is its words, a picture its caption."""
    names = for_students()

    def plain(link):
        picture, words, target = link.groups()
        path = os.path.normpath(ROOT / Path(file).parent / target)
        name = Path(os.path.relpath(path, ROOT)).as_posix()
        if name in names or not os.path.isfile(path):
            return link[0]
        return f"*[picture: {words}]*" if picture else words

    text = DEAD.sub("", STAYS.sub("", (ROOT / file).read_bytes().decode("utf-8")))
    gone = [f"`python {name} " for name in left_out()]
    paragraphs = [block for block in text.split("\n\n") if not any(command in block for command in gone)]
    return LINK.sub(plain, "\n\n".join(paragraphs))


LANGUAGES = {"en": english, "zh": chinese}


def quoted(names, comma=", "):
    """Names as code, with commas."""
    return comma.join(f"`{name}`" for name in names)


def listed(numbers, language):
    """Problems as "1 (The language-model loss), 3 (Sampling)"."""
    words = LANGUAGES[language]
    return words.COMMA.join(words.PROBLEM.format(number=n, title=title(n, language)) for n in numbers)


def section(number, language):
    """What the handout says of a problem."""
    words, problem = LANGUAGES[language], PROBLEMS[number - 1]
    tests = [(test, test.node.split("::test_")[1]) for test in problem.graded()]
    heavy = [words.HEAVY.format(test=name, weight=test.weight) for test, name in tests if test.weight > 1]
    functions = [words.WHERE.format(file=file, functions=quoted(names.split(), words.COMMA))
                 for file, names in problem.functions.items()]
    return words.SECTION.format(
        number=number, title=title(number, language), points=problem.points,
        task=words.TASKS[number], lesson=lesson(number, language),
        functions=words.SEMICOLON.join(functions), needs=listed(problem.needs, language) or words.NONE,
        core=quoted([name for test, name in tests if test.core], words.COMMA),
        tests=(words.UNEQUAL if heavy else words.EQUAL).format(n=len(tests), heavy=words.COMMA.join(heavy)),
        nodes=" ".join(problem.nodes()))


def handout(language="en", numbers=ALL, given=()):
    """The text of HANDOUT.md or HANDOUT.zh.md. given: the problems that are solved."""
    words, needs = LANGUAGES[language], needed_by(numbers)
    others = [n for n in ALL if n not in (*numbers, *needs, *given)]
    chosen = [PROBLEMS[number - 1] for number in numbers]
    lacking = [n for n in needs if n not in given]
    rows = [f"| {n}. {title(n, language)} | {p.points} | {quoted(p.functions, words.COMMA)} |"
            for n, p in zip(numbers, chosen, strict=True)]
    return words.PAGE.format(
        n=len(chosen), points=sum(p.points for p in chosen), version=version(), rows="\n".join(rows),
        needed="".join(sentence.format(problems=listed(problems, language)) for sentence, problems
                       in ((words.GIVEN, given), (words.NOT_GIVEN, lacking)) if problems),
        others=words.OTHERS.format(problems=listed(others, language)) if others else "",
        imports=quoted((name for name in IMPORTS if name != "__future__"), words.COMMA),
        sections="\n\n".join(section(number, language) for number in numbers))


def answer_sheet(numbers):
    """The text of ANSWERS.md: a heading for each written question, in both languages, to write below."""
    heads = [words.ANSWERS for words in LANGUAGES.values()]
    questions = [f"## {n}. {title(n, 'en')} · {title(n, 'zh')}" for n in numbers]
    return "\n\n".join([*heads, *questions]) + "\n"


def write(out, numbers=ALL, given=()):
    """Write the student's repository into the new folder `out`: these problems blank, those of `given`
    solved, and all others blank, too, for they may be asked for later."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Mistake(f"{out} exists already: name a new folder for the student's repository, or give "
                      "--grade to grade this one")
    if ROOT in [out.resolve(), *out.resolve().parents]:
        raise Mistake(f"{out} is inside this repository: name a folder outside, where the solutions are not "
                      "next to it")
    names = for_students()
    changed = {name: page(name) for name in names if name.endswith(".md")}
    for file, words in (("README.md", english), ("docs/zh/README.md", chinese)):
        changed[file] = words.NOTE + changed[file]
    changed |= {file: blanked(file, given) for file in FILES}
    write_to(out, names, changed)
    for language, words in LANGUAGES.items():
        (out / words.FILE).write_text(handout(language, numbers, given), encoding="utf-8")
    (out / "ANSWERS.md").write_text(answer_sheet(numbers), encoding="utf-8")


def left_out():
    """Our files that a student does not get."""
    return sorted(set(repository()) - set(for_students()))
