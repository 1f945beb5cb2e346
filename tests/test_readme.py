"""README and docs: every path, command, flag, link and example in them is right."""

import ast
import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aaai23.harness.config import refuse
from tests.experiments.lines import GENERATORS, PUBLISHED, cli_of, sweep

import collect_results  # isort: skip  # experiments/ is no package: `lines` has put it on the path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (README, *ROOT.glob("docs/*.md"))}
each_page = pytest.mark.parametrize("page", PAGES)
MADE = ("data/sample",)  # by get_data.sh
SCRIPTS = {f"./cli/{cli_of(task).SCRIPT}": task for task in GENERATORS}
NOT_OURS = {"--resume-failed"}  # of GNU parallel


def commands(page):
    """Return the shell commands of a page."""
    return indented(re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL))


def indented(text):
    """Return the indented lines of a text, continued lines joined."""
    text = text.replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def inline(page):
    """Return what a page sets in type of its own within a sentence."""
    return re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL))


def words_of(command):
    """Return the words of a command up to a pipe or a redirection."""
    words = shlex.split(command, comments=True)
    ends = [n for n, word in enumerate(words) if word in ("|", ">", "<")]
    return words[: ends[0] if ends else None]


def help_of(parse):
    """Return the help of a function that parses a command line."""
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        parse(["--help"])
    return text.getvalue()


def test_readme_is_a_screen_and_a_half():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 120


@each_page
def test_every_path_exists(page):
    named = re.findall(
        r"(?<![\w/<.-])(?:\./)?((?:imle|aaai23|cli|experiments|benchmarks|tests|data|docs)/[\w./-]*\w)", PAGES[page]
    )
    assert [path for path in named if not path.startswith(MADE) and not (ROOT / path).exists()] == []


@each_page
def test_every_link_and_picture_is_there(page):
    targets = re.findall(r"\]\(([^)#:]+)\)", PAGES[page])
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []


def test_readme_leads_to_every_page_and_shows_the_demos_picture():
    targets = set(re.findall(r"\]\(([^)#:]+)\)", PAGES["README.md"]))
    assert set(PAGES) - {"README.md"} | {"docs/demo.png", "data/README.md"} <= targets
    assert (ROOT / "docs/demo.png").stat().st_size < 150_000


@each_page
def test_every_make_target_exists(page):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = [words[1] for words in map(str.split, [*commands(page), *inline(page)]) if words[:1] == ["make"]]
    assert set(named) <= set(targets)
    assert page != "README.md" or {"demo", "test"} <= set(named)


@each_page
def test_every_word_given_to_get_data_is_known(page):
    told = subprocess.run(
        [ROOT / "get_data.sh", "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    known = re.findall(r"^ +([a-z0-9]+) ", told, flags=re.MULTILINE)
    words = set(re.findall(r"\./get_data\.sh (\w+)", PAGES[page]))
    assert words <= set(known), known
    assert page != "README.md" or words == {"l2x", "vae", "nri", "sample"}


def test_the_commands_of_readme_compute_what_the_papers_commands_compute():
    found = set()
    for command in commands("README.md"):
        words = words_of(command)
        for n, task in [(n, SCRIPTS[word]) for n, word in enumerate(words) if word in SCRIPTS]:
            assert words[:n] == ["WANDB_MODE=offline", "PYTHONPATH=.", "python3"]
            config = sweep.config_of(task, words[n + 1 :])
            refuse(config)
            published = sweep.config_of(task, PUBLISHED[task].split())
            assert (config.settings(), config.seed) == (published.settings(), published.seed)
            found.add(task)
    assert found == set(SCRIPTS.values())


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_commands_in_a_scripts_docstring_are_accepted(script):
    found = [line for line in indented(ast.get_docstring(ast.parse((ROOT / script).read_text()))) if script in line]
    assert found
    for command in found:
        words = words_of(command)
        refuse(sweep.config_of(SCRIPTS[script], words[words.index(script) + 1 :]))


@each_page
def test_every_command_that_makes_tables_or_sweeps_is_accepted(page, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "ROOT", tmp_path)  # no run is finished there, and Slurm's messages have a place
    for command in commands(page):
        words = words_of(command)
        name = Path(words[0]).name if words else ""
        if name == "collect_results.py":
            collect_results.parser().parse_args(words[1:])
        elif words and words[0].startswith("./experiments/"):
            task = re.fullmatch(r"generate_(\w+)_aimle_cmd\.py", name)[1]
            assert GENERATORS[task].main(words[1:]) == 0
            assert capsys.readouterr().out


@each_page
def test_every_flag_in_a_sentence_is_one_of_ours(page):
    parsers = [cli_of(task).parse_arguments for task in GENERATORS]
    parsers += [collect_results.parser().parse_args, *(module.main for module in GENERATORS.values())]
    known = set(re.findall(r"(?<![\w-])--[\w-]+", "".join(map(help_of, parsers)))) | NOT_OURS
    named = {flag for text in inline(page) for flag in re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", text)}
    assert named <= known, named - known


def test_the_benchmarks_have_the_names_and_flags_that_their_page_gives(monkeypatch):
    from benchmarks import run

    text = PAGES["docs/performance.md"]
    named = re.findall(r"`(\w+)`", re.search(r"^Names: (.*?)\.", text, flags=re.MULTILINE | re.DOTALL)[1])
    assert tuple(named) == run.NAMES
    (command,) = [line for line in commands("docs/performance.md") if "benchmarks.run" in line]
    monkeypatch.setattr(sys, "argv", ["run"])
    assert set(re.findall(r"--\w+", command)) <= set(re.findall(r"--\w+", help_of(run.main)))


def python_of(page):
    """Run the examples of a page in order; returns the names that they leave."""
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", PAGES[page], flags=re.DOTALL):
        exec(block, namespace)
    return namespace


def test_the_example_of_readme_learns_the_subset_that_it_says(capsys):
    assert python_of("README.md")["scores"].shape == (1, 10)
    assert capsys.readouterr().out == "tensor([[1, 4, 7]])\n"


def test_the_examples_of_the_librarys_page_run():
    names = python_of("docs/library.md")
    theta = torch.randn(3, 5, requires_grad=True)
    for _ in range(3):
        names["differentiable_solver"](theta).square().sum().backward()
    assert names["target_distribution"].beta > 0
    mask = torch.tensor([True, True, True, True, False]).expand(3, 5)
    assert names["select_two"](theta, mask).shape == (12, 5)
    assert names["straight_through"](theta).sum() == 6
    weights = torch.rand(2, 4, 4)
    layer = names["layer"]
    for solutions in (layer(weights + weights.mT), layer.eval()(weights + weights.mT)):
        assert torch.equal(solutions.sum((1, 2)), torch.tensor([6.0, 6.0]))
    for solutions in (names["relaxed"](torch.randn(2, 45)), names["relaxed"].eval()(torch.randn(2, 45))):
        torch.testing.assert_close(solutions.sum(1), torch.tensor([9.0, 9.0]))


def test_the_example_of_the_solvers_page_runs():
    paths = python_of("docs/solvers.md")["z"]
    assert torch.equal(paths.sum(dim=1), torch.full((32,), 8.0))


RUN = ("README.md", "docs/library.md", "docs/solvers.md")


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN])
def test_no_other_page_has_an_example_that_no_test_runs(page):
    assert "```python" not in PAGES[page]
