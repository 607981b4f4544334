"""The house rules that keep this readable: imports go one way, nothing is too long, and a PPO step can be
read with two files open. `python tests/test_layout.py` prints the figures."""
import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["train_pretrain", "train_sft", "preferences", "train_rm", "train_ppo", "rejection_sampling"]
FILES = [ROOT / f"{name}.py" for name in ["model", "data", *SCRIPTS]]
ROOMS = sorted(p for room in ("world", "lab") for p in (ROOT / room).glob("*.py"))
OURS = {"model", "data", "world", "lab", *SCRIPTS}
MAY_BE_INSIDE = {"matplotlib", "readline"}  # slow to import, or not there on every system


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def is_main_block(node):
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def imports_of(path):
    """[(module, whether inside a function)] of a file, but for its `if __name__ == "__main__":` block."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not is_main_block(node)]
    inside = {id(x) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for x in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" if node.module in ("lab", "world") else node.module
                     for a in node.names]
        found += [(name, id(node) in inside) for name in names]
    return found


def level(module):
    """Where a module of ours stands: it may import what stands lower; -1 for what is not ours, and for
    lab.before_torch, which every command imports before all else and which imports nothing."""
    room = module.split(".")[0]
    if room not in OURS or module == "lab.before_torch":
        return -1
    return {"model": 0, "data": 0, "world": 1, "lab": 2}.get(room) or (
        3 + SCRIPTS.index(room) if room in SCRIPTS else 0)


@pytest.mark.parametrize("path", FILES + ROOMS, ids=name_of)
def test_imports_go_one_way(path):
    own = level(name_of(path))
    for module, inside in imports_of(path):
        same_room = own in (1, 2) and level(module) == own
        assert level(module) < own or same_room or level(module) == -1, f"{path.name} imports {module}"
        allowed = module.split(".")[0] in MAY_BE_INSIDE
        assert not inside or allowed, f"{path.name} imports {module} in a function"


def test_no_circle_inside_a_room():
    graph = {name_of(p): {m for m, _ in imports_of(p) if m.split(".")[0] in ("lab", "world")} for p in ROOMS}
    while graph:
        free = [name for name, needs in graph.items() if not needs & graph.keys()]
        assert free, f"these import each other in a circle: {sorted(graph)}"
        for name in free:
            del graph[name]


def functions_of(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", FILES + ROOMS, ids=name_of)
def test_nothing_is_too_long(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines), default=0) <= 110
    assert len(lines) <= (410 if path in FILES else 450)
    for f in functions_of(path):
        assert f.end_lineno - f.lineno < 62, f"{path.name}: {f.name} has {f.end_lineno - f.lineno + 1} lines"


def test_code_lines_are_short_on_average():
    for path in FILES:
        assert average_width(path) <= 55, path.name


def average_width(path):
    """Characters of a code line without its indentation; comments, docstrings, blank lines do not count."""
    text = path.read_text(encoding="utf-8")
    tree, prose = ast.parse(text), set()
    for node in ast.walk(tree):
        value = getattr(node, "value", None)
        if isinstance(node, ast.Expr) and isinstance(getattr(value, "value", None), str):
            prose |= set(range(node.lineno, node.end_lineno + 1))
    lines = [line.strip() for n, line in enumerate(text.splitlines(), 1) if n not in prose]
    lines = [line for line in lines if line and not line.startswith("#")]
    return sum(map(len, lines)) / len(lines)


# ------------------------------------------------------------------------------------------------
# The path of a PPO step
# ------------------------------------------------------------------------------------------------


def definitions():
    """{file: {name: [nodes of the functions and methods that have it]}} of all that a step could call."""
    found = {}
    for path in FILES + ROOMS:
        names = found.setdefault(name_of(path), {})
        for f in functions_of(path):
            names.setdefault(f.name, []).append(f)
    return found


def ppo_loop():
    """The loop over iterations in main of train_ppo.py."""
    main = next(f for f in functions_of(ROOT / "train_ppo.py") if f.name == "main")
    loops = [node for node in ast.walk(main) if isinstance(node, ast.For)]
    return next(node for node in loops if "steps" in ast.unparse(node.iter))


def called_from(file, node, known):
    """{(file, function)} that a piece of code calls: functions of its own file, functions that it imports,
    and methods of what is passed around, which are those of an agent, a model, a batch or a scorer."""
    tree = ast.parse((ROOT / f"{file.replace('.', '/')}.py").read_text(encoding="utf-8"))
    imported = {a.name: x.module for x in tree.body if isinstance(x, ast.ImportFrom) for a in x.names}
    found = set()
    for f in (call.func for call in ast.walk(node) if isinstance(call, ast.Call)):
        if isinstance(f, ast.Name):
            found.add((imported.get(f.id, file), f.id))
        elif isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name) and f.value.id in OURS:
            found.add((f.value.id, f.attr))
        elif isinstance(f, ast.Attribute):
            found |= {(place, f.attr) for place in ("train_ppo", "model", "world.reward")}
    return {(place, name) for place, name in found if name in known.get(place, {})}


def step_path():
    """{(file, function): its lines} of what an iteration runs through, by the names that are called, from the
    loop on, as the default has it: one process, for which lab/parallel.py does nothing (its generate is the
    model's). What prints and logs is no part of the algorithm."""
    known, loop = definitions(), ppo_loop()
    logs = {"log", "say", "steps", "show_answers", "look_at_step", "set_lr"}
    off_by_default = {"adapt_kl_coef", "add_ptx_gradient", "llama2_reward", "rate"}
    seen = {("train_ppo", "the loop"): loop.end_lineno - loop.lineno + 1}
    todo = [("train_ppo", "forward"), ("model", "forward")]  # agent(...), model(...): calls of a module
    todo += called_from("train_ppo", loop, known)
    while todo:
        file, name = todo.pop()
        file = "model" if (file, name) == ("lab.parallel", "generate") else file
        if (file, name) in seen or file == "lab.parallel" or name in logs | off_by_default:
            continue
        nodes = known[file][name]
        seen[file, name] = sum(node.end_lineno - node.lineno + 1 for node in nodes)
        todo += set().union(*(called_from(file, node, known) for node in nodes))
    return seen


def test_a_ppo_step_is_read_with_two_files_open():
    path = step_path()
    lines = {}
    for (file, _), n in path.items():
        lines[file] = lines.get(file, 0) + n
    two = lines["train_ppo"] + lines["model"]
    assert len(lines) <= 4, lines
    assert two >= 0.9 * sum(lines.values()), lines
    assert sum(len((ROOT / f"{name}.py").read_text().splitlines()) for name in ("train_ppo", "model")) <= 650


def report():
    for path in FILES + ROOMS:
        lines = path.read_text(encoding="utf-8").splitlines()
        longest = max(functions_of(path), key=lambda f: f.end_lineno - f.lineno, default=None)
        said = f"{longest.name} {longest.end_lineno - longest.lineno + 1}" if longest else "-"
        width = average_width(path) if any(lines) and longest else 0
        print(f"{name_of(path):<20} {len(lines):>4} lines, {width:>3.0f} a code line, longest: {said}")
    lines = {}
    for (file, name), n in sorted(step_path().items()):
        print(f"  step: {file}.{name} {n}")
        lines[file] = lines.get(file, 0) + n
    share = (lines["train_ppo"] + lines["model"]) / sum(lines.values())
    print(f"a PPO step: {lines}, {share:.0%} in two files")


if __name__ == "__main__":
    sys.exit(report())
