"""Whole runs of Learning to Explain on a few reviews, and every figure of their records from plain loops."""

import contextlib
import functools
import io
import json
import random
import re
import statistics
import types
from itertools import pairwise

import pytest
import torch
from sklearn.model_selection import train_test_split

from aaai23.harness.loop import epoch_order, seed_everything
from aaai23.l2x import cli
from aaai23.l2x.config import ANNOTATIONS_FILE, HELDOUT_FILE, TRAIN_FILE, VECTORS_FILE
from aaai23.l2x.model import squared_error
from aaai23.l2x.train import build
from tests.aaai23.scripts import tell

ASPECT, LENGTH, K, SEED, EPOCHS = 3, 12, 3, 4, 8
FLAGS = (
    f"-a {ASPECT} -m {LENGTH} -K {K} -H 30 -b 40 -M ste --ste-noise none --device cpu -e {EPOCHS} --seed {SEED} -r 2"
)
WORDS = [f"w{i}" for i in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Reviews whose held-out ratings lie half way from where predictions start to where training leads them."""
    folder = tmp_path_factory.mktemp("l2x-by-hand")
    rng = random.Random(0)

    def review(words):
        return rng.choices(words, k=rng.randrange(2, LENGTH + 4))

    def write(name, count, low, high, words):
        lines = []
        for _ in range(count):
            ratings = [rng.random() for _ in range(5)]
            ratings[ASPECT] = rng.uniform(low, high)
            lines.append(f"{' '.join(f'{rating:.3f}' for rating in ratings)}\t{' '.join(review(words))}")
        (folder / name.format(aspect=ASPECT)).write_text("\n".join(lines) + "\n")

    write(TRAIN_FILE, 110, 0.9, 1.0, WORDS)
    write(HELDOUT_FILE, 31, 0.6, 0.8, [*WORDS, "unseen"])
    annotated = []
    for _ in range(15):
        tokens = review([*WORDS, "unseen"])
        ranges = {str(aspect): [] for aspect in range(5)}
        for aspect in range(5):
            start = rng.randrange(len(tokens))
            ranges[str(aspect)] = [[start, start + 3]]
        annotated.append(json.dumps({"x": tokens, **ranges}))
    (folder / ANNOTATIONS_FILE).write_text("\n".join(annotated) + "\n")
    vectors = [f"{word} {' '.join(f'{rng.gauss(0, 0.5):.4f}' for _ in range(200))}" for word in WORDS[1:]]
    (folder / VECTORS_FILE).write_text("\n".join(vectors) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """Return a function that runs the script: its log, records by seed, what W&B was told, and by seed what
    to resume from and which weights were exported.
    """

    @functools.cache
    def run_here(line):
        results = tmp_path_factory.mktemp("results")
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
            told = tell(patch)
            places = f"--data-dir {folder} --results-dir {results} -c {results}/m.pt --name n"
            assert cli.main([*line.split(), *places.split()]) == 0

        def by_seed(pattern, load):
            return {int(re.search(r"seed(\d+)", path.name)[1]): load(path) for path in results.glob(pattern)}

        weights = functools.partial(torch.load, weights_only=True)
        return types.SimpleNamespace(
            lines=out.getvalue().splitlines(),
            records=by_seed("l2x/n/seed*.json", lambda path: json.loads(path.read_text())),
            checkpoints=by_seed("l2x/n/seed*.pt", weights),
            exports=by_seed("m.seed*.pt", weights),
            told=told,
        )

    return run_here


def by_hand(folder, line, seed):
    """History and final figures of one seed, from the files, with torch alone around the two networks."""
    config, _ = cli.parse_arguments(line.split())
    vocabulary = {}

    def read(name):
        lines = (folder / name.format(aspect=ASPECT)).read_text().splitlines()
        return [(float(line.split("\t")[0].split()[ASPECT]), line.split("\t")[1].split()) for line in lines]

    def padded(rows, width=LENGTH):
        return torch.tensor([[0] * (width - len(row[:width])) + row[:width] for row in rows])

    train, heldout = read(TRAIN_FILE), read(HELDOUT_FILE)
    for _, words in train:
        for word in words:
            vocabulary.setdefault(word, 3 + len(vocabulary))
    embedding = torch.zeros(3 + len(vocabulary), 200)
    for entry in (folder / VECTORS_FILE).read_text().splitlines():
        word, *numbers = entry.split()
        embedding[vocabulary[word]] = torch.tensor([float(number) for number in numbers])
    validation, test = train_test_split(range(len(heldout)), test_size=0.5, random_state=seed)
    annotated = [json.loads(entry) for entry in (folder / ANNOTATIONS_FILE).read_text().splitlines()]

    seed_everything(seed)
    model = build(config, embedding)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7)

    def choose(scores):
        return sorted(range(LENGTH), key=lambda t: -scores[t])[:K]

    def rate(tokens):
        theta = model.selector(tokens)
        hard = torch.zeros_like(theta)
        for row, scores in zip(hard, theta.tolist()):
            row[choose(scores)] = 1.0
        z = hard + theta - theta.detach()  # straight through
        return model.predictor((z[:, :, None] * embedding[tokens]).sum(dim=1) / K)

    @torch.no_grad()
    def error(indices):
        model.selector.eval()
        tokens = padded([[vocabulary.get(word, 2) for word in heldout[i][1]] for i in indices])
        predicted = rate(tokens).tolist()
        return 100 * statistics.fmean((p - heldout[i][0]) ** 2 for p, i in zip(predicted, indices))

    @torch.no_grad()
    def precision():
        model.selector.eval()
        hits, counted, expected = 0, 0, 0.0
        for review in annotated:
            words = [vocabulary.get(word, 0) for word in review["x"][:LENGTH]]
            shift = LENGTH - len(words)
            inside = {t for start, end in review[str(ASPECT)] for t in range(start, min(end, len(words)))}
            chosen = [t - shift for t in choose(model.selector(padded([words]))[0].tolist())]
            chosen = [t for t in chosen if t >= 0 and words[t] != 0]
            hits += len(inside & set(chosen))
            counted += max(len(chosen), K)
            real = [t for t in range(len(words)) if words[t] != 0]
            expected += len(inside & set(real)) * min(K, len(real)) / max(len(real), 1)
        return 100 * hits / counted, 100 * expected / (K * len(annotated))

    tokens, ratings = padded([[vocabulary[word] for word in words] for _, words in train]), [r for r, _ in train]
    history, finals = [], []
    for epoch in range(config.epochs):
        model.selector.train()
        losses = []
        for batch in epoch_order(len(train), seed, epoch).split(40):
            loss = (rate(tokens[batch]) - torch.tensor([ratings[i] for i in batch])).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        history.append(
            {
                "epoch": epoch + 1,
                "loss_mean": statistics.fmean(losses),
                "loss_std": statistics.pstdev(losses),
                "val_mse": error(validation),
                "test_mse": error(test),
            }
        )
        finals.append(dict(zip(("best_subset_prec", "chance_subset_prec"), precision())))
    best = min(range(config.epochs), key=lambda epoch: history[epoch]["val_mse"])
    return history, {
        "best_val_mse": history[best]["val_mse"],
        "best_test_mse": history[best]["test_mse"],
        **finals[best],
    }


def test_a_run_gives_the_figures_of_a_plain_loop_and_at_the_end_those_of_its_best_epoch(folder, run):
    record = run(FLAGS).records[SEED + 1]
    history, final = by_hand(folder, FLAGS, SEED + 1)
    for entry, expected in zip(record["history"], history, strict=True):
        assert {key: entry[key] for key in expected} == pytest.approx(expected, rel=3e-4)
    assert record["final"] == pytest.approx(final, rel=3e-4)
    errors = [entry["val_mse"] for entry in record["history"]]
    assert min(errors) < min(errors[0], errors[-1])  # or the best epoch could be any
    assert 0 < record["final"]["best_subset_prec"] < 100


def test_the_weights_that_are_written_for_others_are_those_of_the_best_epoch(run):
    found = run(FLAGS)
    errors = [entry["val_mse"] for entry in found.records[SEED + 1]["history"]]
    best = 1 + errors.index(min(errors))
    assert best < EPOCHS
    expected = run(f"{FLAGS} -e {best}").checkpoints[SEED + 1]["parts"]["model"]
    weights = found.exports[SEED + 1]["model"]
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_reruns_are_the_seeds_from_the_given_one_and_the_log_says_their_figures(run):
    found = run(FLAGS)
    assert sorted(found.records) == [SEED, SEED + 1]
    history = found.records[SEED]["history"]
    begin = "INFO:l2x-cli.py:"
    for entry in history:
        line = f"Epoch {entry['epoch']}/{EPOCHS}\tLoss {entry['loss_mean']:.4f} ± {entry['loss_std']:.4f}"
        assert begin + line in found.lines
    for seed, record in found.records.items():
        final = record["final"]
        assert f"{begin}[{seed}] Validation MSE: {final['best_val_mse']:.5f}" in found.lines
        assert f"{begin}[{seed}] Test MSE: {final['best_test_mse']:.5f}" in found.lines
        assert f"{begin}[{seed}] Subset precision: {final['best_subset_prec']:.5f}" in found.lines
    finals = [record["final"] for record in found.records.values()]
    titles = {"Subset Precision": "best_subset_prec", "Validation MSE": "best_val_mse", "Test MSE": "best_test_mse"}
    for title, key in titles.items():
        values = [final[key] for final in finals]
        mean, deviation = statistics.fmean(values), statistics.pstdev(values)
        assert f"{begin}Final {title} List: {mean:.5f} ± {deviation:.5f}" in found.lines


def test_wandb_is_told_the_record_under_the_published_project(run):
    found = run(FLAGS)
    for seed, told in zip((SEED, SEED + 1), found.told, strict=True):
        record = found.records[seed]
        assert told.options["project"] == "beeradv-aaai23"
        assert told.options["name"] == f"ste-{seed}"
        assert set(told.options["tags"]) >= {"l2x", "ste"}
        assert [{"epoch": step, **metrics} for step, metrics in told.logged] == record["history"]
        assert told.final == record["final"]


def test_the_optimiser_is_the_published_adam_over_all_weights(run):
    for checkpoint in run(FLAGS).checkpoints.values():
        parts = checkpoint["parts"]
        (group,) = parts["optimiser"]["param_groups"]
        assert (group["lr"], group["eps"], group["betas"], group["weight_decay"]) == (1e-3, 1e-7, (0.9, 0.999), 0)
        assert len(group["params"]) == len(parts["model"])


def test_every_weight_of_the_selector_moves_in_every_epoch(run):
    """A network that is measured after the first epoch is trained again in the second."""
    weights = [run(f"{FLAGS} -r 1 -e {epochs}").checkpoints[SEED]["parts"]["model"] for epochs in (1, 2, 3)]
    for earlier, later in pairwise(weights):
        for name in earlier:
            assert not torch.equal(earlier[name], later[name]), name


def test_every_step_is_logged_on_demand_and_epochs_are_their_mean_and_population_deviation(run):
    found = run(f"{FLAGS} -r 1 -e 2 --debug")
    for entry in found.records[SEED]["history"]:
        begin = f"INFO:l2x-cli.py:Epoch {entry['epoch']}/2\tIteration "
        steps = [line.removeprefix(begin).split("\tLoss value: ") for line in found.lines if line.startswith(begin)]
        assert [int(number) for number, _ in steps] == [1, 2, 3]
        losses = [float(loss) for _, loss in steps]
        assert all(f"{loss:.4f}" == text for loss, (_, text) in zip(losses, steps))
        assert entry["loss_mean"] == pytest.approx(statistics.fmean(losses), abs=1e-4)
        assert entry["loss_std"] == pytest.approx(statistics.pstdev(losses), abs=1e-4)


def test_the_adaptive_beta_is_in_the_history(run):
    """Three steps an epoch, each of a hundredth, up or down."""
    adaptive = "-M aimle --aimle-target adaptive --imle-lambda 0.5 --aimle-beta-update-step 0.01 --imle-noise gumbel"
    betas = [entry["beta"] for entry in run(f"{FLAGS} -r 1 -e 2 {adaptive}").records[SEED]["history"]]
    for earlier, later in pairwise([0.5, *betas]):
        assert min(abs(abs(later - earlier) - move) for move in (0.01, 0.03)) < 1e-9


# Samples


ESTIMATORS = {
    "ste": "-M ste",
    "imle": "-M imle --imle-lambda 300",
    "imle, scaled": "-M imle --imle-lambda 300 --gradient-scaling",
    "aimle, adaptive": "-M aimle --aimle-target adaptive --imle-lambda 2 --aimle-beta-update-step 0.1",
    "aimle, central": "-M aimle --aimle-symmetric --aimle-target adaptive --imle-lambda 2 --aimle-beta-update-step 0",
}


def gradients(line, samples, temperature, passes):
    """Gradients of all weights `[passes, weights]`, those of the selector first, and how many these are."""
    noise = f"--ste-noise gumbel --ste-temperature {temperature} --imle-noise gumbel "
    noise += f"--imle-input-temperature {temperature} --imle-output-temperature {temperature}"
    config, _ = cli.parse_arguments(f"-K {K} -H 10 --imle-samples {samples} {noise} {line}".split())
    torch.manual_seed(0)
    model = build(config, torch.randn(40, 8)).train()
    model.selector.dropout.eval()
    tokens, ratings = torch.randint(1, 40, (32, 10)), torch.ones(32)
    torch.manual_seed(samples)
    found = []
    for _ in range(passes):
        model.zero_grad()
        squared_error(model(tokens), ratings).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    return torch.stack(found), sum(parameter.numel() for parameter in model.selector.parameters())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_samples_that_are_alike_give_the_gradient_of_one(name):
    single, several = (gradients(ESTIMATORS[name], samples, temperature=0, passes=2)[0] for samples in (1, 4))
    assert single[1].any()
    torch.testing.assert_close(several, single, rtol=1e-3, atol=1e-5 * single.abs().max().item())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_mean_gradient_of_every_weight_does_not_depend_on_the_number_of_samples(name):
    """Compared along the direction of the mean gradient, of the selector and of the predictor by themselves."""
    pilot, split = gradients(ESTIMATORS[name], 5, temperature=1, passes=20)
    runs = [gradients(ESTIMATORS[name], samples, temperature=1, passes=50)[0] for samples in (1, 4)]
    for part in (slice(split), slice(split, None)):
        direction = torch.nn.functional.normalize(pilot[:, part].mean(dim=0), dim=0)
        single, several = (found[:, part] @ direction for found in runs)
        error = ((single.var() + several.var()) / len(single)).sqrt().item()
        assert error < 0.1 * single.mean()  # else the next line says nothing
        assert abs(several.mean() - single.mean()).item() < 4.5 * error
