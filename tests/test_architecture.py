"""The house: imports point down only, and importing does nothing."""

import ast
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TASKS = ["l2x", "dvae", "nri", "synth"]
UPSTAIRS = {"cli", "experiments", "benchmarks", "tests"}
HEAVY = ["gensim", "sklearn", "scipy", "matplotlib", "wandb", "networkx", "pandas"]


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


def task_of(module):
    """Return the task that a module of aaai23 belongs to, or None."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "aaai23" and parts[1] in TASKS else None


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
    assert [pair for pair in imports("imle") if floor(pair[1]) not in allowed | {"numpy"}] == []


def test_the_experiments_of_the_paper_import_nothing_from_upstairs():
    pairs = imports("aaai23")
    assert len(pairs) > 20
    assert [pair for pair in pairs if floor(pair[1]) in UPSTAIRS] == []


def test_tasks_do_not_import_one_another():
    pairs = [(importer, target) for importer, target in imports("aaai23") if task_of(importer) and task_of(target)]
    assert pairs
    assert [pair for pair in pairs if task_of(pair[0]) != task_of(pair[1])] == []


def test_what_tasks_share_does_not_import_a_task():
    pairs = [(importer, target) for importer, target in imports("aaai23") if not task_of(importer)]
    assert [pair for pair in pairs if task_of(pair[1])] == []


def test_experiments_speak_to_runs_through_command_lines_and_records_only():
    assert [pair for pair in imports("experiments") if floor(pair[1]) in ("imle", "cli")] == []


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
    assert {"imle.aimle", "imle.solvers.top_k", "aaai23.run"} <= set(after_imports["names"])
    assert after_imports["changed"] == []


def test_importing_loads_nothing_heavy(after_imports):
    loaded = {name.split(".")[0] for name in after_imports["loaded"]}
    assert "torch" in loaded
    assert [name for name in HEAVY if name in loaded] == []
    assert "torch._dynamo" not in after_imports["loaded"]  # torch's compiler, a second of its own
