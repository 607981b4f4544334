"""Assignments that grade themselves: this repository without the bodies of its central functions, and points
for whoever writes them.

    python tests/assignment.py OUT                   writes the student's repository into the new folder OUT,
                                                     with HANDOUT.md and, in Chinese, HANDOUT.zh.md
    python tests/assignment.py OUT --problems 1-5,7  asks for some of the problems; what they need is given
                                                     solved, with --solved all others are, so that every
                                                     command works, and with --blank none
    python tests/assignment.py OUT --grade           grades it: points for each problem; --json for machines,
                                                     --gradescope FILE for Gradescope
    python tests/assignment.py FOLDER --grade-all    grades every folder in FOLDER, and writes grades.csv and
                                                     grades.json there
    python tests/assignment.py --prove               shows that the tests can be passed, and neither by
                                                     nothing, nor by a sham, nor by solutions that are wrong
                                                     (hours); --brief: in minutes, without the wrong ones
    python tests/assignment.py --attack              shows what the attacks of tests/grader/attacks.py come to

--grade and --grade-all take --problems, too, and --variant SEED: other random numbers in the tests, and
hidden cases of other sizes.

What is promised. Everywhere: of a submission only the functions asked for are taken, with what they use; what
they say is checked before it runs, against a list of what a calculation needs; they run on a copy that is
thrown away, with our tests and our solutions in everything but the problem in question, under limits of
time; results come back as JSON and are checked. On Linux, as root or where ordinary users may have
namespaces: they see no file but Python and the copy, can write 64 MB of memory that is gone afterwards, and
have no network, no other process, 2 GB, and no rights. On macOS, on Windows and in a container that allows no
namespaces the check and a hook in Python are all there is (on macOS and in containers with limits of time and
size): there grade on a machine that you can lose. Before anything is graded an attempt to write outside,
to read the solutions, to open a connection and to start a program must fail.
"""
import argparse
import sys
from pathlib import Path

from grader.attacks import attack_all
from grader.examine import in_words, standing
from grader.handout import write
from grader.points import Grader, grade, grade_all, gradescope, read_student, submissions_in, write_json
from grader.problems import ALL, PROBLEMS, Mistake, needed_by
from grader.proof import prove
from grader.sources import check, numbers_in


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"assignment.py: {message} (-h shows what can be done)\n")


def make_parser():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False)
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?",
                        help="the student's repository, or with --grade-all the folder that holds many")
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--grade", action="store_true", help="grade OUT")
    does.add_argument("--grade-all", action="store_true", help="grade every folder in OUT")
    does.add_argument("--prove", action="store_true", help="show what the tests are worth; takes no OUT")
    does.add_argument("--attack", action="store_true", help="attack the grader itself; takes no OUT")
    parser.add_argument("--brief", action="store_true",
                        help="with --prove: not the wrong solutions, the variants and the whole suite")
    parser.add_argument("--problems", metavar="NUMBERS", help="some of the problems, as in 1-5,7")
    parser.add_argument("--blank", action="store_true",
                        help="leave blank what the problems need, too: the student's own from earlier")
    parser.add_argument("--solved", action="store_true",
                        help="give solutions of all other problems, which the experiments need")
    parser.add_argument("--variant", type=int, metavar="SEED",
                        help="grade with other numbers and hidden cases; SEED from 1, the same for a class")
    parser.add_argument("--json", action="store_true",
                        help="with --grade: the result as JSON, every test of it with why it failed")
    parser.add_argument("--gradescope", type=Path, metavar="FILE",
                        help="with --grade: write the result as Gradescope's results.json")
    parser.add_argument("--limit", type=float, default=120.0, metavar="SECONDS",
                        help="time for the tests of a problem (default: 120)")
    parser.add_argument("--jobs", type=int, metavar="N",
                        help="how many problems are graded at a time (default: one for each core)")
    return parser


def check_flags(args):
    """Raises Mistake where flags do not go together."""
    alone, grades = args.prove or args.attack, args.grade or args.grade_all
    rules = [
        (bool(args.out) == alone,
         "expected OUT, the folder of a student's repository, or --prove or --attack"),
        ((args.json or args.gradescope) and not args.grade,
         "--json and --gradescope go with OUT: python tests/assignment.py OUT --grade --json"),
        ((args.blank or args.solved) and (grades or alone),
         "--blank and --solved say what is written: give them without --grade"),
        (args.blank and args.solved, "--blank or --solved: give one of them"),
        (args.variant is not None and not grades, "--variant goes with --grade or --grade-all"),
        (args.variant is not None and args.variant < 1,
         f"--variant {args.variant}: expected a number from 1"),
        (args.problems and alone, "--problems goes with OUT"),
        (args.brief and not args.prove, "--brief goes with --prove"),
        (not args.limit > 0, f"--limit {args.limit:g}: expected a number of seconds above 0"),
        (args.jobs is not None and args.jobs < 1, f"--jobs {args.jobs}: expected a number from 1"),
    ]
    for wrong, sentence in rules:
        if wrong:
            raise Mistake(sentence)


def act(args):
    """Do what the command line asks for. Returns the exit code."""
    numbers = numbers_in(args.problems) if args.problems else list(ALL)
    if not (args.grade or args.grade_all or args.prove or args.attack):
        given = [n for n in ALL if n not in numbers] if args.solved else needed_by(numbers)
        write(args.out, numbers, [] if args.blank else given)
        points = sum(PROBLEMS[n - 1].points for n in numbers)
        print(f"{args.out}: {len(numbers)} problems, {points} points; HANDOUT.md and HANDOUT.zh.md there are "
              "for the student")
        return 0
    if args.grade:
        read_student(args.out)
    if args.grade_all:
        submissions_in(args.out)
    print(f"walls: {in_words(standing())}", file=sys.stderr)
    if args.prove:
        return 0 if prove(args.limit, args.jobs, args.brief) else 1
    if args.attack:
        return 0 if attack_all() else 1
    grader = Grader(numbers, args.limit, args.variant or 0, args.jobs)
    if args.grade_all:
        grade_all(args.out, grader)
        return 0
    result = grade(args.out, grader, args.json)
    if args.gradescope:
        write_json(args.gradescope, gradescope(result))
    return 0


def main(argv=None):
    """Returns the exit code: 0, or 1 where --prove or --attack finds something wrong."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        check_flags(args)
        check()
        return act(args)
    except Mistake as error:
        parser.exit(2, f"assignment.py: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
