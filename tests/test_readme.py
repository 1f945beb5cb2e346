import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MADE = ("results", "models", "wandb", "data/", "exp_nri")  # by runs or get_data.sh


def commands():
    """Shell commands of the README, continued lines joined."""
    text = README.replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def help_of(script):
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, env={"PYTHONPATH": "."}, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_every_path_that_readme_names_exists():
    named = set(
        re.findall(r"(?<![\w/<])(?:\./)?((?:imle|aaai23|cli|experiments|benchmarks|tests|data)/[\w./-]*)", README)
    )
    assert len(named) >= 5
    missing = [path for path in named if not path.startswith("data/sample") and not (ROOT / path.rstrip(".")).exists()]
    assert not missing


def test_every_file_of_the_tree_exists():
    tree = README.split("## The house")[1].split("`make check`")[0]
    top = ""
    for line in tree.splitlines():
        if not line.startswith("    "):
            continue
        names = line.strip().split("  ")[0].split()
        if not line.startswith("      "):
            top = names[0]
            names = [""]
        for name in names:
            assert (ROOT / top / name).exists(), f"{top}{name}"


def test_every_make_target_that_readme_names_exists():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = set(re.findall(r"make (demo|test|check|bench|data|\w+)`", README)) | {"demo", "test"}
    assert named <= set(targets)


@pytest.mark.parametrize("script", sorted(set(re.findall(r"(?:cli|experiments)/[\w-]+\.py", README))))
def test_every_flag_that_readme_gives_a_script_exists(script):
    lines = [line for line in commands() if script in line]
    known = set(re.findall(r"(?<![\w-])-{1,2}[\w-]+", help_of(script)))
    for line in lines:
        arguments = line.split(script, 1)[1].split("|")[0].split(">")[0]
        flags = set(re.findall(r"(?<=\s)-{1,2}[a-zA-Z][\w-]*", arguments))
        assert flags <= known, (script, flags - known)


def test_every_word_that_readme_gives_get_data_is_known():
    script = (ROOT / "get_data.sh").read_text()
    words = set(re.findall(r"\./get_data\.sh (\w+)", README))
    assert words and all(re.search(rf"\b{word}\b", script) for word in words)


def test_the_python_of_readme_runs():
    namespace = {}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(block, namespace)
    import torch

    theta = torch.randn(3, 5, requires_grad=True)
    for _ in range(3):
        namespace["differentiable_solver"](theta).square().sum().backward()
    assert namespace["target_distribution"].beta > 0
