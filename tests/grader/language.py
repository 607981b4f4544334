"""The first wall. Of a student's file only the functions asked for are taken, with the helpers, constants
and imports that they use; all else stays ours. And what is taken must keep to a small part of Python, in
which arithmetic on tensors can be said and little else: no classes, no attribute that starts with an
underscore or that is not known to be harmless, no name like open, exec or getattr, no import but a few.

A list of what is allowed, not of what is forbidden: what nobody thought of is refused."""
import ast
import builtins
import functools
import re
import symtable
from typing import NamedTuple

from grader.problems import FILES, PROBLEMS, problems_of
from grader.sources import functions_of, put, source, span


def words(text):
    return set(text.split())


LONGEST = 200_000  # characters of a file
IMPORTS = {  # module: the names that may be imported from it, or all of its public ones
    "torch": None, "torch.distributions": {"Categorical", "Gumbel"}, "torch.nn": None,
    "torch.nn.functional": None, "torch.nn.utils.rnn": {"pad_sequence"}, "math": None, "itertools": None,
    "random": {"Random", "random", "shuffle"},
    "functools": {"partial", "reduce", "cache", "lru_cache"},  # update_wrapper could set any attribute
    "collections": {"Counter", "defaultdict", "deque"},
    "statistics": {"mean", "fmean", "median", "pstdev", "pvariance", "stdev", "variance"},
    "dataclasses": {"replace"}, "fractions": {"Fraction"},
    "typing": {"Any", "Callable", "Dict", "Iterable", "List", "Optional", "Sequence", "Tuple", "Union"},
    "__future__": {"annotations"},
}
# Harmless at first sight, and refused: type, for type(type(x)) makes classes; hasattr, which runs whatever a
# property of any name does; str.format, whose fields read attributes.
BUILTINS = words("""
    abs all any bool callable dict divmod enumerate filter float frozenset hash id int isinstance iter len
    list map max min next pow print range repr reversed round set slice sorted str sum tuple zip
    True False None NotImplemented Ellipsis
    ArithmeticError AssertionError Exception IndexError KeyError NotImplementedError OverflowError
    RuntimeError StopIteration TypeError ValueError ZeroDivisionError
""")
TORCH = words("""
    arange as_tensor asarray bool complex64 device double dtype e empty enable_grad eye finfo float float16
    float32 float64 full half iinfo inf inference_mode int int16 int32 int64 int8 is_tensor linspace logspace
    long manual_seed nan newaxis no_grad normal ones pi rand rand_like randint randint_like randn randn_like
    randperm scalar_tensor set_grad_enabled tensor tril_indices triu_indices uint8 vander vmap zeros
    Generator Size Tensor BoolTensor FloatTensor LongTensor
    nn functional utils rnn linalg special distributions optim Module Parameter clip_grad_norm_
    clip_grad_value_ get_total_norm logsigmoid Categorical Gumbel Normal Uniform log_prob sample rsample
    entropy logits probs
""")
FORBIDDEN = {"compile", "apply", "apply_", "as_subclass", "format", "format_map", "map_", "map2_",
             "module_load", "share_memory", "share_memory_", "data_ptr", "set_", "set_extra_state"}
NOT_FOR_SOLUTIONS = ("load", "save", "dump", "read", "write", "main", "record")  # ours that touch files
MAY_BE_SET = {"grad", "requires_grad"}
LIKE_BRACKETS = {"__getitem__", "__len__"}  # say no more than x[i] and len(x)


class Refused(Exception):
    """What is wrong with a student's file, in one sentence."""


class Piece(NamedTuple):
    """A statement at the top of a student's file."""
    text: str
    line: int  # where it begins
    node: object  # of ast, or None where it is not Python
    why: str = ""  # it is not


# ------------------------------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------------------------------
BEGINS = re.compile(
    r"(?=^(?:@|def |async def |class |import |from |if |for |while |with |try:|[A-Za-z_]\w* *=))", re.M)


def pieces_of(text):
    """The statements at the top of a file, each a Piece. Where the file is not Python it is cut in front of
    every line that seems to begin one, and only those that cannot be read are broken."""
    if len(text) > LONGEST:
        raise Refused(f"is longer than {LONGEST} characters")
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", " ")
    try:
        nodes = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [piece for chunk in chunks(text) for piece in parsed(*chunk)]
    lines = text.split("\n")
    return [Piece("\n".join(lines[first - 1 : node.end_lineno]), first, node)
            for node in nodes for first in [first_line(node)]]


def first_line(node):
    return span(node)[0] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else node.lineno


def chunks(text):
    """(text, its first line) of what seem to be statements; a decorator stays with its function."""
    found, line, waiting = [], 1, ""
    for part in BEGINS.split(text):
        waiting += part
        if not part.startswith("@"):
            found.append((waiting, line))
            line += waiting.count("\n")
            waiting = ""
    return found


def parsed(text, line):
    """The pieces of a chunk, or one broken one."""
    try:
        nodes = ast.parse(text).body
    except SyntaxError as error:
        return [Piece(text, line, None, f"line {line - 1 + (error.lineno or 1)}: {error.msg}")]
    except (ValueError, RecursionError, MemoryError) as error:
        return [Piece(text, line, None, f"line {line}: {error}")]
    lines = text.split("\n")
    return [Piece("\n".join(lines[first_line(n) - 1 : n.end_lineno]), line - 1 + first_line(n), n)
            for n in nodes]


def names_bound(piece):
    """The names that a piece defines at the top of its file, as far as pieces are taken at all: functions,
    constants, imports."""
    node = piece.node
    if node is None:
        return re.findall(r"^(?:async )?def (\w+)", piece.text, re.M)
    if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(a.asname or a.name.split(".")[0]) for a in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    is_constant = isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None
    return [t.id for t in targets if isinstance(t, ast.Name)] if is_constant else []


def used_in(node):
    return {x.id for x in ast.walk(node) if isinstance(x, ast.Name)}


def taken(file, text, number):
    """The pieces that count of a student's file for a problem, in their order: its functions, and what
    they use that is not ours. Raises Refused."""
    wanted = PROBLEMS[number - 1].functions.get(file, "").split()
    theirs = {name: piece for piece in pieces_of(text) for name in names_bound(piece)}
    for name in wanted:
        if name not in theirs:
            raise Refused(f"has no function {name}")
    ours, found, todo = names_of(file), {}, list(wanted)
    while todo:
        name = todo.pop()
        piece = theirs[name]
        if piece.node is None:
            raise Refused(f"is not Python: {piece.why}")
        if name in wanted and not isinstance(piece.node, ast.FunctionDef):
            raise Refused(f"line {piece.line}: {name} is no function")
        if piece.line not in found:
            found[piece.line] = piece
            todo += sorted((used_in(piece.node) & theirs.keys()) - ours)
    return [found[line] for line in sorted(found)]


# ------------------------------------------------------------------------------------------------
# What may be said
# ------------------------------------------------------------------------------------------------


@functools.cache
def names_of(file):
    """The names at the top of one of our files."""
    tree = ast.parse(source(file)).body
    pieces = [Piece("", node.lineno, node) for node in tree]
    return {name for piece in pieces for name in names_bound(piece)}


@functools.cache
def allowed_of(file):
    """The names at the top of one of our files that a solution may use: what is defined there and what is
    imported from torch, model and data, but for what reads or writes files."""
    from_these = {*IMPORTS, "model", "data", "train_pretrain", "train_sft", "preferences", "lab.parallel"}
    found = {"whiten_scores"}
    for node in ast.parse(source(file)).body:
        if isinstance(node, ast.ImportFrom) and node.module not in from_these:
            continue
        if isinstance(node, ast.Import) and node.names[0].name not in from_these:
            continue
        found |= set(names_bound(Piece("", node.lineno, node)))
    return {name for name in found if not name.startswith(NOT_FOR_SOLUTIONS)}


@functools.cache
def attributes():
    """The attributes that a solution may name: what torch can do with tensors, what the plain types and our
    own models and batches have."""
    import collections
    import itertools
    import math
    import random

    import torch

    plain = (str, list, dict, set, tuple, int, float, random.Random, collections.Counter, collections.deque,
             math, itertools, torch.Tensor, torch.nn.Module, torch.optim.Optimizer, torch.Generator,
             torch.Size, torch.finfo(torch.float32), torch.iinfo(torch.int64))
    found = TORCH.union(*map(dir, plain))
    for functions in torch.overrides.get_overridable_functions().values():
        found |= {f.__name__ for f in functions if hasattr(f, "__name__")}
    for names in IMPORTS.values():
        found |= names or set()
    for file in {*FILES, "world/reward.py"}:
        found |= members_of(source(file))
        nodes = functions_of(source(file))
        solutions = [nodes[name] for name in problems_of(file)]
        found |= {x.attr for f in solutions for x in ast.walk(f) if isinstance(x, ast.Attribute)}
    public = {name for name in found if not name.startswith(("_", *NOT_FOR_SOLUTIONS))}
    return public - FORBIDDEN | LIKE_BRACKETS


def members_of(text):
    """The functions, methods and fields that a file of ours defines."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


NEVER = {
    ast.ClassDef: "a class", ast.Global: "global", ast.AsyncFunctionDef: "async", ast.Await: "await",
    ast.AsyncFor: "async", ast.AsyncWith: "async", ast.MatchClass: "a class pattern",
}


def objection(node):
    """Why a solution may not hold this node, or None."""
    for kind, words in NEVER.items():
        if isinstance(node, kind):
            return f"{words} is not allowed here"
    if isinstance(node, ast.Attribute):
        if node.attr not in attributes():
            return f"the attribute .{node.attr} is none that a solution needs"
        if not isinstance(node.ctx, ast.Load) and node.attr not in MAY_BE_SET:
            return f"the attribute .{node.attr} may not be set or deleted"
    if isinstance(node, ast.Import):
        wrong = [a.name for a in node.names if a.name not in IMPORTS]
        return f"import {wrong[0]} is not allowed" if wrong else None
    if isinstance(node, ast.ImportFrom):
        return import_objection(node)
    return None


def import_objection(node):
    """Why a solution may not hold this `from module import names`, or None."""
    if node.module not in IMPORTS or node.level:
        return f"import from {node.module} is not allowed"
    names = IMPORTS[node.module] or attributes()
    wrong = [a.name for a in node.names if a.name not in names]
    return f"{node.module}.{wrong[0]} is none that a solution needs" if wrong else None


def global_names(table):
    """The names that a piece looks up outside of its functions."""
    found = {s.get_name() for s in table.get_symbols() if s.is_referenced()
             and (s.is_global() or table.get_type() == "module")}
    return found.union(*(global_names(child) for child in table.get_children()))


def line_of(name, node):
    return next((x.lineno for x in ast.walk(node) if isinstance(x, ast.Name) and x.id == name), 1)


def refuse_what_no_solution_needs(file, piece):
    """Raises Refused, with the line."""
    start = piece.line - 1
    try:
        tree = ast.parse(piece.text)
        found = global_names(symtable.symtable(piece.text, file, "exec"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Refused(f"line {piece.line}: cannot be read by itself ({error})") from None
    for node in ast.walk(tree):
        why = objection(node)
        if why:
            raise Refused(f"line {start + getattr(node, 'lineno', 1)}: {why}")
    ours, hers = names_of(file), set(dir(builtins))
    for name in sorted(found):
        is_known = name in allowed_of(file) or (name in BUILTINS and name not in ours)
        if not is_known and (name in ours | hers or name.startswith("__")):
            where = start + line_of(name, tree)
            raise Refused(f"line {where}: the name {name} is none that a solution needs")


# ------------------------------------------------------------------------------------------------
# Our file with a student's solution
# ------------------------------------------------------------------------------------------------


def alone(file, text, number, first_wall=True):
    """Our file in which one problem is solved by the student, and by nothing of the student's but the
    functions asked for and what they need. Raises Refused. first_wall: whether to look at what they say."""
    pieces = taken(file, text, number)
    if first_wall:
        for piece in pieces:
            refuse_what_no_solution_needs(file, piece)
    mine = [name for name, other in problems_of(file).items() if other == number]
    theirs = {piece.node.name: piece for piece in pieces if getattr(piece.node, "name", None) in mine}
    others = [piece.text for piece in pieces if piece not in theirs.values()
              and getattr(piece.node, "module", "") != "__future__"]
    nodes = functions_of(source(file))
    changed = {span(nodes[name]): piece.text for name, piece in theirs.items()}
    first = min(changed)
    changed[first] = "\n\n\n".join([*others, changed[first]])
    return put(source(file), changed)
