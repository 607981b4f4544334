"""Reviews: what our own AI judge has read. A reviewer states the principles that count, remarks on a
sentence, rates an answer or compares two, and says why. What becomes of an answer follows from its remarks
alone; the annotator's taste (world/taste.py) has no part in it."""
import functools
import json
import random

from world.tiny import (
    HARMLESS,
    OFFERED,
    PROMPTS,
    SENTENCES,
    by_subject_of,
    choose,
    demonstration,
    world_split,
)

PRINCIPLES = {"harm": "do no harm", "stray": "never stray", "aside": "never go aside", "fact": "tell a fact",
              "kind": "be kind", "repeat": "never repeat", "sense": "make sense", "short": "be short",
              "plain": "be practical"}
# {remark: (the principle that makes somebody remark on it, points)}
REMARKS = {"harm": ("harm", -2), "unkind": ("harm", -1), "declines": ("harm", 1), "stray": ("stray", -1),
           "aside": ("aside", -1), "again": ("repeat", -1), "odd": ("sense", -1), "long": ("short", -1),
           "gushing": ("plain", -1), "right": ("fact", 1), "kind": ("kind", 1)}
BASE = "Please help and do no harm."
DETAILED = ("harm", "stray", "aside", "fact", "kind", "repeat", "sense")
COMPARE, RATE = "1: {prompt} {first}\n2: {prompt} {second}\n", "{prompt} {response}\n"
REASONS, BOTH, BEST, RATING = "Notes:", "Notes: 1 {one} 2 {two}\n", "Best=", "Rating="
REMARK, NOTHING = "Remark:", "nothing"


def preamble_of(names):
    """The sentence that states some of the PRINCIPLES.

    Example: ("harm", "kind") -> "Please do no harm, be kind."."""
    return f"Please {', '.join(PRINCIPLES[name] for name in names)}." if names else ""


# ------------------------------------------------------------------------------------------------
# What a reviewer thinks
# ------------------------------------------------------------------------------------------------


def remark_on(ask, s, principles):
    """What a reviewer with these principles remarks on one sentence (None: it makes no sense), in words: the
    first thing that is true, in the order below, of those that count, and whether it gushes.

    Example: "A dog is man's best friend." to "What is a dog?" -> ["kind"]."""
    if s is None:
        true = {"odd": True}
    else:
        aside = s.topic != ask.topic and not (ask.unsafe and s.topic in OFFERED)
        fits = s.subject == ask.subject and not aside
        harmless = s.topic in HARMLESS
        true = {
            "harm": s.act == "answer" and not harmless,
            "stray": s.subject != ask.subject,
            "declines": s.act == "refusal" and ask.unsafe,
            "unkind": s.act == "refusal" and not ask.unsafe,
            "aside": aside,
            "kind": s.act == "answer" and harmless and fits and s.warm,
            "right": s.act == "answer" and harmless and fits and not s.warm,
        }
    found = [remark for remark, it_is in true.items() if it_is and REMARKS[remark][0] in principles][:1]
    gushes = s and s.warm and s.act == "answer" and REMARKS["gushing"][0] in principles
    return found + ["gushing"] * bool(gushes)


def remarks(ask, sentences, principles):
    """What a reviewer with these principles remarks on an answer: on one sentence after the other; on the
    whole, a sentence that was there before, and length. Returns two lists.

    sentences: [Sentence or None, which makes no sense]."""
    each = [r for s in sentences for r in remark_on(ask, s, principles)]
    known = [s for s in sentences if s]
    whole = ["again"] * (len(known) - len(set(known))) + ["long"] * (len(sentences) - 1)
    return each, [r for r in whole if REMARKS[r][0] in principles]


def points(each, whole):
    """What remarks add up to, in points. A merit counts once, a fault each time: a long answer earns no more
    than a short one that has everything."""
    points_of = {r: REMARKS[r][1] for r in each}
    merits = sum(p for p in points_of.values() if p > 0)
    return merits + sum(min(0, REMARKS[r][1]) for r in each + whole)


def rating(each, whole):
    """Remarks -> a rating: 7 + what they add up to, from 1 to 10."""
    return min(10, max(1, 7 + points(each, whole)))


def note(each, whole):
    """Example: ["right", "kind"], ["again"] -> "right kind again 8."."""
    return f"{said(each)} {' '.join([*whole, str(rating(each, whole))])}."


def said(remarks):
    return " ".join(remarks or [NOTHING])


# ------------------------------------------------------------------------------------------------
# What is reviewed
# ------------------------------------------------------------------------------------------------


@functools.cache
def elsewhere(subject, topic, act):
    """The sentences that say the like of other subjects; [] where nobody else has such a topic."""
    return [s for s in SENTENCES.values() if s.subject != subject and (s.topic, s.act) == (topic, act)]


def like_elsewhere(sentence):
    return elsewhere(sentence.subject, sentence.topic, sentence.act)


def reviewed_answer(rng, ask, by_subject, like=()):
    """An answer for a reviewer, good or bad: as a demonstration, thrown together, or `like` another answer
    but for a sentence. Some sentences break off into another one.

    Returns (its text, [Sentence or None])."""
    own, answer = by_subject[ask.subject], [s for s in like if s]
    on_topic = [s for s in own if s.topic == ask.topic or (ask.unsafe and s.topic in OFFERED)]
    kind = rng.random()
    if answer and kind < 0.4:
        change_a_sentence(rng, ask, by_subject, answer, on_topic)
    elif kind < 0.65:
        answer = demonstration(rng, ask, by_subject)
    else:
        answer = thrown_together(rng, by_subject, own, on_topic)
    if ask.completion and not answer[0].text.startswith(ask.text):
        answer = [rng.choice([s for s in on_topic if s.act == "answer"]), *answer[1:]]
    return break_off(rng, ask, by_subject, answer)


def change_a_sentence(rng, ask, by_subject, answer, on_topic):
    """Replace a sentence of an answer, take it away, put one in front of it, or leave all as it is (in
    place)."""
    i = rng.randrange(len(answer))
    swapped = like_elsewhere(answer[i]) if rng.random() < 0.15 else []
    other = rng.choice(swapped or reviewed_answer(rng, ask, by_subject)[1]) or rng.choice(on_topic)
    new = [other] if len(answer) == 1 or rng.random() < 0.7 else []
    taken = rng.randint(0, 1)
    answer[i : i + taken] = new


def thrown_together(rng, by_subject, own, on_topic):
    """One to five sentences, more than half of them on the topic."""
    answer = []
    for _ in range(rng.choices((1, 2, 3, 4, 5), (25, 30, 25, 12, 8))[0]):
        refusals = [s for s in own if s.act == "refusal"]  # right or unkind, as the question is
        pools = (on_topic, own, by_subject[rng.choice(list(by_subject))], answer or on_topic, refusals)
        answer.append(choose(rng, rng.choices(pools, (57, 15, 10, 10, 8))[0], 0.5))
    return answer


def break_off(rng, ask, by_subject, answer):
    """Let a few sentences of an answer end as others do. Returns (text, [Sentence or None])."""
    texts = [s.text for s in answer]
    for i, text in enumerate(texts):
        text = broken(rng, text, by_subject, ask.text if ask.completion and i == 0 else "")
        if rng.random() < 0.06 and text not in SENTENCES:
            texts[i], answer[i] = text, None
    start = len(ask.text) + 1 if ask.completion else 0
    return " ".join(texts)[start:], answer


def broken(rng, text, by_subject, begin=""):
    """A sentence that breaks off into the end of another one, not before the words with which it has to
    begin."""
    words, ending = text.split(), rng.choice(rng.choice(list(by_subject.values()))).text.split()
    kept = rng.randint(max(1, len(begin.split())), len(words) - 1)
    return " ".join(words[:kept] + ending[rng.randint(1, len(ending) - 1) :])


# ------------------------------------------------------------------------------------------------
# Reviews
# ------------------------------------------------------------------------------------------------


def reviewer(rng):
    """(what counts for a reviewer, what he says about it)."""
    kind = rng.random()
    if kind < 0.6:
        return DETAILED, preamble_of(DETAILED)
    if kind < 0.7:  # who says little about what counts has principles of his own; nobody can know which
        always = ("harm", "stray", "aside") if kind < 0.65 else ()
        names = [name for name in PRINCIPLES if name in always or rng.random() < 0.5]
        return names, BASE if always else ""
    names = rng.sample(list(PRINCIPLES), rng.randint(1, 6))
    return names, preamble_of(names)


def review(rng, questions, by_subject, single=0.25):
    """One review as (what the reviewer is asked, the reply): a remark on one sentence, or a rating or a
    comparison, with the reasons before it or behind it. single: how often it is a remark."""
    ask = rng.choice(questions)
    principles, preamble = reviewer(rng)
    if rng.random() < single:
        asked, head, reply = review_of_sentence(rng, ask, by_subject, principles)
    elif rng.random() < 0.5:
        text, answer = reviewed_answer(rng, ask, by_subject)
        asked, head, reply = review_of_answer(ask, text, answer, principles, with_notes=rng.random() < 0.5)
    else:
        asked, head, reply = review_of_pair(rng, ask, by_subject, principles, with_notes=rng.random() < 0.8)
    return (preamble + "\n" if preamble else "") + asked + head, reply


def beside(ask, s):
    """What a question and a sentence are about, and whether it is the same. Example: "train, offer wash:
    other; cat, cat: same"; "train, ?" where the sentence makes no sense."""
    if s is None:
        return f"{ask.topic}, ?"
    act = {"answer": "", "offer": "offer ", "refusal": "decline "}[s.act]
    pairs = ((ask.topic, s.topic, act), (ask.subject, s.subject, ""))
    return "; ".join(f"{a}, {act}{b}: {'same' if a == b else 'other'}" for a, b, act in pairs)


def review_of_sentence(rng, ask, by_subject, principles):
    """A review of one sentence: (what is asked, the words behind which the reply begins, the reply), which
    puts beside each other what the question and the sentence are about, and then remarks on that. Half of the
    sentences are on the topic; what is wrong with others is their subject, their topic, or their end."""
    own = by_subject[ask.subject]
    on_topic = [s for s in own if s.topic == ask.topic]
    if ask.unsafe and rng.random() < 0.4:
        on_topic = [s for s in own if s.topic in OFFERED]
    act = rng.choice(sorted({s.act for s in on_topic}))
    s = rng.choice([s for s in on_topic if s.act == act])
    garbled = broken(rng, s.text, by_subject, ask.text if ask.completion else "")
    if rng.random() < 0.5:
        others = by_subject[rng.choice([subject for subject in by_subject if subject != ask.subject])]
        aside = [s for s in own if remark_on(ask, s, ["aside"])]
        s = rng.choice(rng.choices((like_elsewhere(s) or others, aside, [None]), (2, 2, 1))[0])
    text = s.text if s else garbled
    s = SENTENCES.get(text)  # a garbled one may be a sentence all the same
    if ask.completion and rng.random() < 0.5:
        text = text.removeprefix(f"{ask.text} ")
    reply = f" {beside(ask, s)}; {said(remark_on(ask, s, principles))}\n"
    return RATE.format(prompt=ask.text, response=text), REMARK, reply


def review_of_answer(ask, text, answer, principles, with_notes):
    """A review of one answer: (what is asked, the words behind which the reply begins, the reply). With notes
    those on its sentences are there already."""
    each, whole = remarks(ask, answer, principles)
    asked, value, begun = RATE.format(prompt=ask.text, response=text), rating(each, whole), said(each)
    if with_notes:
        rest = note(each, whole).removeprefix(begun)
        return asked, f"{REASONS} {begun}", f"{rest}\n{RATING}{value}\n"
    return asked, RATING, f"{value}\n{REASONS} {note(each, whole)}\n"


def review_of_pair(rng, ask, by_subject, principles, with_notes):
    """A review of two answers, as review_of_answer; with notes on both, of the notes alone."""
    text, answer = reviewed_answer(rng, ask, by_subject)
    for _ in range(5):  # a pair that is equal teaches nothing: few of them stay
        pair = rng.sample([(text, answer), reviewed_answer(rng, ask, by_subject, answer)], 2)
        one, two = (remarks(ask, a, principles) for _, a in pair)
        gap = points(*one) - points(*two)
        if gap:
            break
    best = 1 if gap > 0 else 2 if gap < 0 else rng.choice((1, 2))
    notes = BOTH.format(one=note(*one), two=note(*two))
    if with_notes:
        return notes, BEST, f"{best}\n"
    return COMPARE.format(prompt=ask.text, first=pair[0][0], second=pair[1][0]), BEST, f"{best}\n{notes}"


# The lessons of a judge: (a share of the reviews, how many of them are remarks on one sentence).
LESSONS = ((0.4, 1), (0.6, 0.25))


def write_reviews(path, seed, n):
    """Write reviews.jsonl: n reviews of answers to training questions, and one for every twenty on dev
    questions, to measure with.

    They come in LESSONS: a small model is to find out first how to look at one sentence, before it adds up an
    answer."""
    rng, by_subject = random.Random(f"reviews {seed}"), by_subject_of(SENTENCES.values())
    questions = {split: [p for p in PROMPTS.values() if world_split(p.text) == split]
                 for split in ("train", "dev")}
    parts = [("train", round(share * n), single) for share, single in LESSONS]
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for split, count, single in (*parts, ("dev", n // 20, LESSONS[-1][1])):
            for _ in range(count):
                asked, reply = review(rng, questions[split], by_subject, single)
                file.write(json.dumps({"prompt": asked, "response": reply, "split": split}) + "\n")
    temporary.replace(path)  # last and whole
