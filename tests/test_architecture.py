"""The house: imports point down only, and importing does nothing."""

import ast
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRAINED = ["l2x", "dvae", "nri"]
TASKS = [*TRAINED, "synth"]
UPSTAIRS = {"cli", "experiments", "benchmarks", "tests"}
BELOW = {  # what each room of aaai23 may import of the others; a task may import whatever is no task
    "errors": set(),
    "speed": {"errors"},
    "harness": {"errors", "speed"},
    "plots": {"errors", "harness"},
    "flags": {"harness"},
    "methods": {"flags"},
    "scripts": {"harness"},  # tasks by their names
}
READ_BY_EXPERIMENTS = {
    "aaai23.errors",
    "aaai23.harness.config",
    "aaai23.harness.files",
    "aaai23.harness.identity",
    "aaai23.harness.record",
    "aaai23.plots",
    "aaai23.synth.config",
}
HEAVY = ["gensim", "sklearn", "scipy", "matplotlib", "wandb", "networkx", "pandas", "pebble"]


@functools.cache
def modules(package):
    """Return (dotted name, syntax tree) of every module of a package."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append((name, path, ast.parse(path.read_text(encoding="utf-8"))))
    return found


def imported(name, path, node):
    """Return the absolute names of the modules that one statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        parents = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parents, base]).rstrip(".")
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


def imports(package, lazy=True):
    """Return pairs (module, imported module); without lazy ones, which stand inside functions."""
    pairs = []

    def visit(name, path, node):
        if not lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        pairs.extend((name, target) for target in imported(name, path, node))
        for child in ast.iter_child_nodes(node):
            visit(name, path, child)

    for name, path, tree in modules(package):
        visit(name, path, tree)
    return pairs


def floor(module):
    return module.split(".")[0]


def room(module):
    """Return the part of aaai23 that a module belongs to, such as a task, or None."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "aaai23" else None


def test_the_walk_sees_imports_of_every_kind():
    pairs = imports("imle")
    assert ("imle.aimle", "imle.finite_difference") in pairs
    assert ("imle.aimle", "torch") in pairs
    assert ("imle.solvers", "imle.solvers.top_k") in pairs
    tree = ast.parse("from . import a\nfrom ..b import c\nfrom .d import e")
    found = [target for node in tree.body for target in imported("p.q.r", Path("r.py"), node)]
    assert {"p.q.a", "p.b.c", "p.q.d"} <= set(found)


def test_the_library_imports_torch_and_nothing_else():
    allowed = set(sys.stdlib_module_names) | {"torch", "imle"}
    pairs = imports("imle", lazy=False)
    assert len(pairs) > 20
    assert [pair for pair in pairs if floor(pair[1]) not in allowed] == []
    assert [
        pair for pair in imports("imle") if floor(pair[1]) not in allowed | {"numpy", "scipy", "tqdm", "pebble"}
    ] == []


def test_the_rest_of_the_library_does_not_know_the_wrapper_nor_the_diagnostics():
    for module in ("imle.wrapper", "imle.diagnostics"):
        assert [pair for pair in imports("imle") if pair[1].startswith(module)] == []
        assert module in {importer for importer, _ in imports("imle")}


def test_the_experiments_of_the_paper_import_nothing_from_upstairs():
    pairs = imports("aaai23")
    assert len(pairs) > 20
    assert [pair for pair in pairs if floor(pair[1]) in UPSTAIRS] == []


def test_rooms_of_the_experiments_import_those_below_them_and_tasks_not_one_another():
    pairs = {(room(importer), room(target)) for importer, target in imports("aaai23") if room(importer)}
    assert {importer for importer, _ in pairs} == {*BELOW, *TASKS} - {"errors"}  # that one imports nothing
    wrong = [
        (importer, target)
        for importer, target in pairs
        if target not in (None, importer) and target not in BELOW.get(importer, BELOW)
    ]
    assert wrong == []


def test_records_configurations_and_command_lines_load_without_torch():
    """So that `--help` answers at once, and that sweeps and tables need no torch."""
    light = (".cli", ".config", ".environment", ".files", ".identity", ".record", ".shell")
    names = [name for name, *_ in modules("aaai23") if name.endswith(light)]
    assert {room(name) for name in names} == {"harness", *TASKS}
    code = f"import sys, importlib; [importlib.import_module(name) for name in {names}]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_experiments_read_runs_through_their_records_and_scripts_through_their_command_lines():
    """They print command lines for `cli`, and read records with `aaai23.harness.record`.

    To tell which runs are pending, and which a published value belongs to, they must know what a command line means.
    That only the script's own module can say: `sweep.CLIS` names the modules, and none of them imports torch.
    """
    found = {target for _, target in imports("experiments") if floor(target) in ("imle", "cli", "aaai23", "torch")}
    assert {
        name for name in found if not (name in READ_BY_EXPERIMENTS or name.rpartition(".")[0] in READ_BY_EXPERIMENTS)
    } == set()
    assert "aaai23.harness.record" in found
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "experiments").glob("*.py"))
    named = set(re.findall(r"\"(aaai23\.[\w.]+)\"", source))
    assert named == {f"aaai23.{task}.cli" for task in TRAINED}


def test_benchmarks_import_no_tests():
    pairs = imports("benchmarks")
    assert pairs and [pair for pair in pairs if floor(pair[1]) == "tests"] == []


IMPORT_EVERYTHING = """
import importlib, json, pkgutil, random, sys
import torch

def state():
    import os
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": repr(random.getstate()),
        "numpy": repr(sys.modules["numpy"].random.get_state()) if "numpy" in sys.modules else None,
        "dtype": str(torch.get_default_dtype()),
        "anomaly": torch.is_anomaly_enabled(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "print": repr(torch._tensor_str.PRINT_OPTS),
        "threads": torch.get_num_threads(),
        "environment": dict(os.environ),
    }

if torch.tensor(1).numpy() is not None:  # numpy is in memory before and after
    import numpy, logging
before, handlers = state(), len(logging.getLogger().handlers)
names = []
for package in sys.argv[1:]:
    names.append(package)
    importlib.import_module(package)
    for module in pkgutil.walk_packages([package], package + "."):
        if module.name.rpartition(".")[2] != "__main__":
            names.append(module.name)
            importlib.import_module(module.name)
after = state()
changed = [key for key in before if before[key] != after[key]]
if len(logging.getLogger().handlers) != handlers:
    changed.append("logging")
print(json.dumps({"names": names, "changed": changed, "loaded": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def after_imports():
    """What a fresh process looks like once every module of a package is imported."""

    def run(*packages):
        command = [sys.executable, "-c", IMPORT_EVERYTHING, *packages]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)

    return run("imle", "aaai23")


def test_importing_changes_no_random_state_and_no_setting(after_imports):
    assert {"imle.aimle", "imle.solvers.top_k", "aaai23.harness.run"} <= set(after_imports["names"])
    assert after_imports["changed"] == []


def test_importing_loads_nothing_heavy(after_imports):
    loaded = {name.split(".")[0] for name in after_imports["loaded"]}
    assert "torch" in loaded
    assert [name for name in HEAVY if name in loaded] == []
    assert "torch._dynamo" not in after_imports["loaded"]  # torch's compiler, a second of its own
