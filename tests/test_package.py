"""The package: what a wheel holds, and that a user who installs it has what the README says."""

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import imle

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import torch
from imle.aimle import aimle
from imle.imle import imle
from imle.layers import MAPLayer
from imle.solvers import select_k
from imle.target import TargetDistribution


@aimle(nb_samples=2)
def select_two(theta: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return select_k(theta * scale, 2)


layer = MAPLayer(select_two.solver, imle(target_distribution=TargetDistribution(beta=2.0)))
z: torch.Tensor = select_two(torch.zeros(1, 3), scale=2.0)
"""


def files_of_the_tree():
    """Return what git would take: the tree without what was built or downloaded."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Return the folder with the distributions of the tree as it is."""
    tree = tmp_path_factory.mktemp("tree")
    for name in files_of_the_tree():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."]
    subprocess.run(build, cwd=tree, capture_output=True, text=True, check=True)
    return tree / "dist"


@pytest.fixture(scope="session")
def user(built, tmp_path_factory):
    """Return the python of an environment with the wheel and torch, and nothing else of ours."""
    place = tmp_path_factory.mktemp("user") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    python = place / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "torch_and_its_like.pth").write_text(str(Path(torch.__file__).parent.parent))
    return python


def run(python, *arguments, cwd):
    return subprocess.run([python, *arguments], cwd=cwd, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_the_wheel_installs_the_library_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"imle", f"adaptive_imle-{imle.__version__}.dist-info"}
    sources = {str(path.relative_to(ROOT)) for path in ROOT.glob("imle/**/*.py")}
    assert sources | {"imle/py.typed"} == {name for name in names if name.startswith("imle/")}
    assert not any(name.endswith("entry_points.txt") for name in names)


@pytest.mark.slow
def test_the_source_distribution_holds_no_experiment_and_builds_the_same_version(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        folders = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"imle", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= folders
    assert not folders & {"aaai23", "experiments", "benchmarks", "tests", "cli", "docs"}
    assert imle.__version__ in sdist.name


@pytest.mark.slow
def test_a_user_of_the_wheel_can_run_the_example_of_readme(user, tmp_path):
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)[1]
    (tmp_path / "example.py").write_text(example + "\nimport imle\nprint(imle.__file__)\n")
    told = run(user, "example.py", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert Path(told.stdout.splitlines()[-1]).is_relative_to(user.parent.parent)


@pytest.mark.slow
def test_a_users_script_is_clean_under_strict_types(user, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", "--python-executable", user)
    told = run(*mypy, "script.py", cwd=tmp_path)
    assert told.returncode == 0, told.stdout
    (tmp_path / "script.py").write_text(SCRIPT + 'select_two(torch.zeros(1, 3), scale="2")\n')
    told = run(*mypy, "script.py", cwd=tmp_path)
    assert 'Argument "scale"' in told.stdout


def test_the_version_is_the_same_wherever_it_is_given():
    changes = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    citation = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert changes[0] == citation[1] == imle.__version__


def test_the_workflows_call_the_makefile_and_nothing_else():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for workflow in (ROOT / ".github/workflows").glob("*.yml"):
        text = workflow.read_text(encoding="utf-8")
        commands = re.findall(r"run: (.*)$", text, flags=re.MULTILINE)
        named = " ".join(commands).replace("${{ matrix.target }}", " ".join(re.findall(r'"([a-z][\w -]+)"', text)))
        assert commands and all(command.startswith("make ") for command in commands)
        assert set(named.split()) - {"make"} <= targets


def test_an_editable_install_adds_the_experiments_and_their_commands(monkeypatch):
    given = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: given.update(options))
    monkeypatch.chdir(ROOT)
    for argv, wanted in ((["setup.py", "bdist_wheel"], False), (["setup.py", "editable_wheel"], True)):
        monkeypatch.setattr(sys, "argv", argv)
        exec(compile(ast.parse((ROOT / "setup.py").read_text()), "setup.py", "exec"), {})
        assert ("aaai23" in given["packages"]) is wanted and "imle.solvers" in given["packages"]
        assert bool(given["entry_points"]["console_scripts"]) is wanted
