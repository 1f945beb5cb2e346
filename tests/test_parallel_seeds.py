"""Several seeds of the discrete VAE as one batched model: each must become what it is alone."""

import json

import pytest
import torch
from torch import nn

from aaai23.dvae import cli, train
from aaai23.dvae.data import FILES
from aaai23.dvae.sample import idx_bytes, make_digits
from aaai23.linear import Linear, StackedLinear
from aaai23.run import comparable
from aaai23.sample_data import MARKER
from aaai23.shell import run_cli
from tests.test_dvae_cli import METHODS, flags

SEEDS = (3, 4, 5)
# As with the published sizes, each layer has a multiple of 16 parameters: torch's fused Adam takes so many at a time
# on a CPU, and rounds what is left over otherwise.
SIZES = ("--input-dim", "256", "--code-m", "4", "--code-n", "8")
pytestmark = pytest.mark.usefixtures("no_pictures", "as_on_a_gpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dvae")
    (train_images, train_labels), (test_images, test_labels) = make_digits()
    pieces = (train_images[:250, 6:22, 6:22], train_labels[:250], test_images[:50, 6:22, 6:22], test_labels[:50])
    for name, content in zip(FILES, pieces, strict=True):
        (folder / name).write_bytes(idx_bytes(content))
    (folder / MARKER).touch()
    return folder


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Let the script take --parallel-seeds on the CPU as well."""
    check = cli.check_parallel_seeds
    monkeypatch.setattr(cli, "check_parallel_seeds", lambda args, device: check(args, torch.device("cuda")))


@pytest.fixture
def run(capsys, digits, tmp_path):
    """Run the script in this process, records under a folder: exit code, output, errors."""

    def run_here(folder, *more):
        with pytest.raises(SystemExit) as stop:
            run_cli(lambda _: cli.main(flags(digits, tmp_path / folder, *SIZES, "--name", "n", *more)), cli.SCRIPT)
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run_here


@pytest.fixture
def alone(run):
    """Run each seed on its own."""

    def run_alone(*more, folder="alone"):
        for seed in SEEDS:
            code, _, err = run(folder, "--seed", str(seed), *more)
            assert code == 0, err

    return run_alone


@pytest.fixture
def together(run):
    def run_together(*more, folder="together"):
        return run(folder, "--seed", str(SEEDS[0]), "--parallel-seeds", str(len(SEEDS)), *more)

    return run_together


@pytest.fixture
def read(tmp_path):
    """Return a seed's record and its checkpoint."""

    def read_here(folder, seed):
        path = tmp_path / folder / "results" / "vae" / "n" / f"seed{seed}.json"
        return comparable(json.loads(path.read_text())), torch.load(path.with_suffix(".pt"), weights_only=True)

    return read_here


@pytest.fixture
def spoil(monkeypatch):
    """Return a function that makes the losses of some seeds NaN."""
    find_figures = train.Session.training_figures

    def spoil_seeds(seeds):
        def spoiled(session, losses):
            return find_figures(session, losses * torch.nan if session.args.seed in seeds else losses)

        monkeypatch.setattr(train.Session, "training_figures", spoiled)

    return spoil_seeds


def assert_same_state(ours, theirs):
    """The same network, optimiser, adaptive state and random state, to the last bit."""
    assert ours["model"].keys() == theirs["model"].keys()
    for name, value in theirs["model"].items():
        assert torch.equal(ours["model"][name], value), name
    moments, expected = ours["optimiser"]["state"], theirs["optimiser"]["state"]
    assert moments.keys() == expected.keys()
    for parameter, values in expected.items():
        assert all(torch.equal(moments[parameter][name], value) for name, value in values.items())
    assert torch.equal(ours["random"]["torch"], theirs["random"]["torch"])
    assert (ours["seed"], ours["epoch"], ours["iteration"]) == (theirs["seed"], theirs["epoch"], theirs["iteration"])


def assert_same_record(ours, theirs):
    """The same settings and figures, but for the rounding of means."""
    for key in ("task", "name", "seed", "status", "error", "sample_data"):
        assert ours[key] == theirs[key], key
    ignored = ("parallel_seeds", "results_dir", "resume", "seed")
    assert {k: v for k, v in ours["config"].items() if k not in ignored} == {
        k: v for k, v in theirs["config"].items() if k not in ignored
    }
    assert ours["config"]["seed"] == ours["seed"]
    assert len(ours["history"]) == len(theirs["history"]) > 0
    for mine, expected in zip([*ours["history"], ours["final"]], [*theirs["history"], theirs["final"]], strict=True):
        assert mine["beta"] == expected["beta"]
        for key in expected.keys() - {"beta"}:
            assert mine[key] == pytest.approx(expected[key], rel=1e-5), key


@pytest.mark.parametrize("method", METHODS)
def test_each_seed_becomes_what_it_is_alone(method, alone, together, read):
    arguments = ("-M", method.split(",")[0], *METHODS[method])
    alone(*arguments)
    code, out, err = together(*arguments)
    assert code == 0, err
    for seed in SEEDS:
        (ours, state), (theirs, expected) = read("together", seed), read("alone", seed)
        assert_same_record(ours, theirs)
        assert_same_state(state, expected)
        assert f"Seed {seed}\tEpoch 2/2\tTraining Loss" in out and f"Seed {seed}\tAverage Test Loss" in out
    losses = [read("together", seed)[0]["final"]["loss"] for seed in SEEDS]
    assert len(set(losses)) == len(SEEDS)


def test_a_stacked_run_can_be_continued_alone_and_the_other_way_round(alone, together, read):
    alone("-e", "3", folder="whole")
    assert together("-e", "1", folder="first together")[0] == 0
    alone("-e", "3", "--resume", folder="first together")
    alone("-e", "1", folder="first alone")
    assert together("-e", "3", "--resume", folder="first alone")[0] == 0
    for folder in ("first together", "first alone"):
        for seed in SEEDS:
            (ours, state), (theirs, expected) = read(folder, seed), read("whole", seed)
            assert_same_record(ours, theirs)
            assert_same_state(state, expected)


def test_seeds_that_have_come_to_different_epochs_all_reach_the_end(run, alone, together, read):
    alone("-e", "3", folder="whole")
    for seed, epochs in zip(SEEDS, ("3", "1", "1")):
        assert run("parts", "--seed", str(seed), "-e", epochs)[0] == 0
    code, out, err = together("-e", "3", "--resume", folder="parts")
    assert code == 0, err
    assert f"Seed {SEEDS[0]}" not in out and "Epoch 1/3" not in out
    code, out, _ = together("-e", "4", "--resume", folder="parts")
    assert code == 0 and out.count("Epoch 4/4") == len(SEEDS)
    assert run("apart", "--seed", str(SEEDS[1]), "-e", "1")[0] == 0
    assert together("-e", "3", "--resume", folder="apart")[0] == 0
    for seed in SEEDS:
        assert_same_state(read("apart", seed)[1], read("whole", seed)[1])


def test_finished_seeds_are_not_trained_again(together, read):
    assert together()[0] == 0
    before = [read("together", seed)[0] for seed in SEEDS]
    code, out, _ = together("--resume")
    assert code == 0 and "Epoch" not in out and out.count("Average Test Loss") == len(SEEDS)
    assert "Experiment completed." in out.splitlines()[-1]
    assert [read("together", seed)[0] for seed in SEEDS] == before


def test_a_seed_that_breaks_fails_alone(alone, together, read, monkeypatch):
    alone("-e", "3")
    whole = train.build

    def build(args):
        model = whole(args)
        if args.seed == SEEDS[1]:
            with torch.no_grad():
                model.decoder[0].weight[0, 0] = torch.nan
        return model

    monkeypatch.setattr(train, "build", build)
    code, _, err = together("-e", "3")
    assert code == 1 and len(err.strip().splitlines()) == 1 and f"seed {SEEDS[1]}" in err and "1 of 3" in err
    for seed in (SEEDS[0], SEEDS[2]):
        (ours, state), (theirs, expected) = read("together", seed), read("alone", seed)
        assert_same_record(ours, theirs)
        assert_same_state(state, expected)


def test_the_record_of_a_broken_seed_says_so(together, tmp_path, spoil):
    spoil(SEEDS[1:])
    code, _, err = together()
    assert code == 1 and "2 of 3 seeds failed" in err
    records = [json.loads((tmp_path / f"together/results/vae/n/seed{seed}.json").read_text()) for seed in SEEDS]
    assert [record["status"] for record in records] == ["finished", "failed", "failed"]
    assert "the loss is not finite" in records[1]["error"] and records[1]["history"] == []


def test_a_seed_that_has_to_go_alone_and_breaks_leaves_the_others_alone(run, together, read, spoil):
    assert run("parts", "--seed", str(SEEDS[0]), "-e", "1")[0] == 0
    spoil(SEEDS[:1])
    code, _, err = together("-e", "2", "--resume", folder="parts")
    assert code == 1 and f"1 of 3 seeds failed, the others are finished; seed {SEEDS[0]}" in err
    assert [read("parts", seed)[0]["status"] for seed in SEEDS] == ["failed", "finished", "finished"]


def test_a_stack_of_layers_is_each_of_them_on_its_own_rows():
    layers = [Linear(7, 5) for _ in range(3)]
    stacked, x = StackedLinear(layers), torch.randn(3, 32, 7, requires_grad=True)
    y = stacked(x)
    assert torch.equal(y, torch.stack([layer(rows) for layer, rows in zip(layers, x)]))
    expected = torch.stack([rows @ layer.weight.T + layer.bias for layer, rows in zip(layers, x)])
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    for i in range(3):
        torch.testing.assert_close(stacked.weight.grad[i], 2 * y[i].T.detach() @ x[i].detach())
        assert not torch.equal(stacked.weight[i], layers[i - 1].weight)


def test_one_layer_on_several_batches_is_torchs():
    ours, torchs = Linear(7, 5), nn.Linear(7, 5)
    torchs.load_state_dict(ours.state_dict())
    for shape in ((7,), (1, 7), (13, 7), (2, 48, 7), (0, 7)):
        x = torch.randn(shape)
        torch.testing.assert_close(ours(x), torchs(x))


def test_wandb_gets_a_run_of_its_own_for_each_seed(together, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    code, _, err = together("-e", "1")
    assert code == 0 and "W&B is off" not in err
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == len(SEEDS)
    assert err.count("Run summary:") == len(SEEDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--parallel-seeds", "0"], "--parallel-seeds"), (["--seed", "4294967290", "--parallel-seeds", "9"], "--seed")],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, run):
    code, out, err = run("bad", *arguments)
    assert code == 2 and len(err.strip().splitlines()) == 1 and message in err
    assert "Traceback" not in out + err


def test_on_a_cpu_the_script_says_what_is_faster(run, monkeypatch):
    monkeypatch.undo()
    code, out, err = run("cpu", "--parallel-seeds", "2")
    assert code == 2 and len(err.strip().splitlines()) == 1 and "OMP_NUM_THREADS=1" in err
    assert "Epoch" not in out
