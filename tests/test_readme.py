"""README, the site's pages, CONTRIBUTING: every path, command, flag, link and example in them is right."""

import ast
import contextlib
import io
import os
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import imle
from aaai23.harness.config import refuse
from aaai23.synth import cli as synth
from benchmarks import jair
from tests.experiments.lines import GENERATORS, PUBLISHED, cli_of, sweep

import collect_results  # isort: skip  # experiments/ is no package: `lines` has put it on the path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PATHS = (README, ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"))
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PATHS}
each_page = pytest.mark.parametrize("page", PAGES)
MADE = ("data/sample", "data/knapsack", "docs/_build")  # by get_data.sh, by make docs
SCRIPTS = {f"./cli/{cli_of(task).SCRIPT}": task for task in GENERATORS}
MEASURING = f"./cli/{synth.SCRIPT}"  # trains nothing, so no generator prints its lines
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
        r"(?<![\w/<.(-])(?:\./)?((?:imle|aaai23|cli|experiments|benchmarks|examples|tests|data|docs)/[\w./-]*\w)",
        PAGES[page],
    )
    assert [path for path in named if not path.startswith(MADE) and not (ROOT / path).exists()] == []


@each_page
def test_every_link_and_picture_is_there(page):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", PAGES[page])
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []


def led_to(page):
    """Return the files of the repository to which a page leads."""
    targets = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", PAGES[page])
    return {os.path.normpath((ROOT / page).parent / target).removeprefix(f"{ROOT}/") for target in targets}


def test_readme_or_the_index_leads_to_every_page():
    of_the_site_alone = {"docs/data.md", "docs/contributing.md"}  # they show what the index leads to
    listed = set(re.findall(r"^api/\w+", PAGES["docs/api.md"], flags=re.MULTILINE))
    led = led_to("README.md") | led_to("docs/index.md") | {f"docs/{name}.md" for name in listed}
    assert set(PAGES) - {"README.md"} - of_the_site_alone | {"data/README.md"} <= led
    assert "docs/index.md" in led_to("README.md")


def test_the_index_names_the_pages_in_the_order_of_the_contents():
    hidden = "".join(re.findall(r"```{toctree}(.*?)```", PAGES["docs/index.md"], flags=re.DOTALL))
    contents = [line for line in hidden.splitlines() if line and not line.startswith(":")]
    named = re.findall(r"^- \[.*?\]\((.*?)\.md\)", PAGES["docs/index.md"], flags=re.MULTILINE)
    assert contents == [{"../data/README": "data", "../CONTRIBUTING": "contributing"}.get(name, name) for name in named]


def test_the_api_has_every_public_module():
    named = {module for page in PAGES for module in re.findall(r"automodule:: ([\w.]+)", PAGES[page])}
    found = {"imle", *(module.name for module in pkgutil.walk_packages(imle.__path__, "imle."))}
    assert named == {name for name in found if "._" not in name}


def test_readme_shows_the_demos_picture():
    assert "docs/demo.png" in led_to("README.md")
    assert (ROOT / "docs/demo.png").stat().st_size < 150_000


def test_the_pictures_of_the_idea_are_small_and_can_be_drawn_again(tmp_path):
    runpy.run_path(str(ROOT / "docs/pictures.py"))["draw"](tmp_path)
    shown = {target for target in led_to("docs/idea.md") if target.startswith("docs/pictures/")}
    assert shown == {f"docs/pictures/{path.name}" for path in tmp_path.iterdir()}
    for picture in shown:
        drawn, there = (path.read_text(encoding="utf-8") for path in (tmp_path / Path(picture).name, ROOT / picture))
        assert len(there) < 60_000
        assert re.findall(r"<text.*?>(.*?)</text>", drawn) == re.findall(r"<text.*?>(.*?)</text>", there)


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
    assert found == set(PUBLISHED)


@pytest.mark.parametrize("script", [*SCRIPTS, MEASURING])
def test_the_commands_in_a_scripts_docstring_are_accepted(script):
    text = ast.get_docstring(ast.parse((ROOT / script).read_text()), clean=False)
    found = [line for line in indented(text) if script in line]
    assert found
    for command in found:
        accept(script, command)


@each_page
def test_every_command_that_measures_is_accepted(page):
    found = [command for command in commands(page) if MEASURING in command]
    assert bool(found) == (page == "docs/gradients.md")
    for command in found:
        accept(MEASURING, command)


def accept(script, command):
    """Parse and check a command line of a script."""
    words = words_of(command)
    arguments = words[words.index(script) + 1 :]
    config = synth.parse_arguments(arguments)[0] if script == MEASURING else sweep.config_of(SCRIPTS[script], arguments)
    refuse(config)


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
    parsers = [synth.parse_arguments, *(cli_of(task).parse_arguments for task in GENERATORS)]
    parsers += [collect_results.parser().parse_args, jair.main]
    parsers += [module.main for module in GENERATORS.values()]
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


def test_the_start_begins_with_the_example_of_readme_and_its_network_learns(capsys):
    first = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
    assert first.search(PAGES["docs/start.md"])[1] == first.search(PAGES["README.md"])[1]
    assert python_of("docs/start.md")["right"] > 0.9
    assert capsys.readouterr().out.startswith("tensor([[1, 4, 7]])\n")


def test_the_examples_of_the_librarys_page_run():
    names = python_of("docs/library.md")
    theta = torch.randn(3, 5, requires_grad=True)
    mask = torch.tensor([True, True, True, True, False]).expand(3, 5)
    assert names["select_two"](theta, mask).shape == (12, 5)
    assert names["straight_through"](theta).sum() == 6
    weights = torch.rand(2, 4, 4)
    layer = names["layer"]
    for solutions in (layer(weights + weights.mT), layer.eval()(weights + weights.mT)):
        assert torch.equal(solutions.sum((1, 2)), torch.tensor([6.0, 6.0]))
    for solutions in (names["relaxed"](torch.randn(2, 45)), names["relaxed"].eval()(torch.randn(2, 45))):
        torch.testing.assert_close(solutions.sum(1), torch.tensor([9.0, 9.0]))


def test_the_examples_of_solvers_of_ones_own_run():
    names = python_of("docs/your-solver.md")
    theta, lengths = names["padded"], names["lengths"]
    assert names["theta"].grad.shape == (3, 5)
    assert torch.equal(names["z"].sum(dim=1), torch.full((2,), 3.0))  # one of each of three
    z = names["aimle"](names["select_two_of"], nb_samples=2)(theta, lengths)
    assert torch.equal(z.sum(dim=1), torch.full((6,), 2.0))
    assert not (z * (torch.arange(5) >= lengths[:, None]).repeat_interleave(2, dim=0)).any()
    assert names["warm"].shape == (6, 5)
    costs = torch.rand(2, 4, 4, requires_grad=True)
    edges, least = names["tour_edges"](costs), names["best_tour"](costs[1].detach().numpy())
    assert (edges.sum(1) == 1).all() and (edges.sum(2) == 1).all() and sorted(least) == [0, 1, 2, 3]
    edges.square().sum().backward()
    assert costs.grad.any()
    assert torch.equal(names["cheapest"](costs)[:, 0, 0], torch.ones(2))
    with pytest.warns(UserWarning, match="infeasible"):
        answer = names["aimle"](names["careful"], noise_distribution=None)(torch.tensor([[1.0, -2.0], [2.0, -1.0]]))
    assert names["careful"].failed.tolist() == [True, False] and torch.equal(answer[1], torch.tensor([1.0, 0.0]))


def test_the_example_of_the_solvers_page_runs():
    names = python_of("docs/solvers.md")
    assert torch.equal(names["z"].sum(dim=1), torch.full((32,), 8.0))
    costs, arcs = torch.rand(50, 5), torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 1, 1]])  # 0 -> 1 -> 3, 0 -> 2 -> 1 -> 3
    assert torch.equal(names["cheapest_path"](costs), arcs[(costs @ arcs.T.float()).argmin(dim=1)].float())


def test_the_example_of_gathered_rows_has_a_gradient():
    names = python_of("docs/questions.md")
    assert names["chosen"].shape == (2, 3, 4) and names["theta"].grad.any()


def test_the_example_of_several_processes_runs_in_one(monkeypatch):
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    try:
        names = python_of("docs/data_parallel.md")
        assert names["target"].beta != 0.5 and next(names["model"].parameters()).grad.any()
    finally:
        torch.distributed.destroy_process_group()


def test_the_example_of_the_page_for_users_of_pyepo_runs_and_decides_as_their_model_does():
    pytest.importorskip("pyepo")
    pytest.importorskip("ortools")
    names = python_of("docs/pyepo.md")
    assert names["predict"].weight.grad.abs().sum() > 0
    model, costs = names["shortestPathModel"]((5, 5)), names["costs"][:3]
    exact = names["differentiable"](model, noise_distribution=None)(costs)
    for row, z in zip(costs, exact):
        model.setObj(row)
        assert model.solve()[1] == pytest.approx((row * z).sum().item(), rel=1e-5)


RUN = ("start", "library", "your-solver", "solvers", "questions", "data_parallel", "pyepo")


def test_no_page_has_an_example_that_no_test_runs():
    assert {page for page in PAGES if "```python" in PAGES[page]} == {"README.md"} | {f"docs/{name}.md" for name in RUN}
