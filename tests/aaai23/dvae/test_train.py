"""Whole runs of the discrete VAE on a few images, and every figure of their records from plain loops."""

import json
import math
import statistics
import types

import pytest
import torch

from aaai23 import methods
from aaai23.dvae import cli
from aaai23.dvae.model import losses, published_test_loss
from aaai23.dvae.sample import make_digits
from aaai23.dvae.train import build
from aaai23.harness.loop import epoch_order, seed_everything
from tests.aaai23.scripts import tell
from tests.reference.data import write_digits

TRAIN, TEST, STEPS, SEED = 450, 50, 5, 3
SMALL = f"-b 100 --input-dim 196 --code-m 4 --code-n 6 -K 3 --device cpu --seed {SEED} --name n"
S = 2
FLAGS = f"{SMALL} -M ste --ste-noise none --imle-samples {S}"

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("vae-by-hand") / "digits", TRAIN, TEST)


@pytest.fixture
def run(digits, tmp_path, capsys, monkeypatch):
    """Return a function that runs the script: its log, its record, its checkpoint, and what W&B was told."""

    def run_here(line):
        told = tell(monkeypatch)
        assert cli.main([*line.split(), "--data-dir", str(digits), "--results-dir", str(tmp_path)]) == 0
        return types.SimpleNamespace(
            lines=capsys.readouterr().out.splitlines(),
            record=json.loads((tmp_path / "vae" / "n" / f"seed{SEED}.json").read_text()),
            checkpoint=torch.load(tmp_path / "vae" / "n" / f"seed{SEED}.pt", weights_only=True),
            told=told[-1],
        )

    return run_here


def by_hand(line):
    """The history of a run, from the images, with torch alone around encoder and decoder."""
    config, _ = cli.parse_arguments(line.split())
    (train, _), (test, _) = make_digits()
    train, test = (
        torch.as_tensor(images[:count, ::2, ::2]).flatten(1) / 255 for images, count in ((train, TRAIN), (test, TEST))
    )
    seed_everything(SEED)
    model = build(config)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def figures(images):
        """Cross-entropies `[S, B]` and divergences `[B]`."""
        rows = model.encoder(images).view(len(images), config.code_m, config.code_n)
        hard = torch.zeros_like(rows)
        for b in range(len(images)):
            for m in range(config.code_m):
                hard[b, m, sorted(range(config.code_n), key=lambda n: -rows[b, m, n].item())[: config.select_k]] = 1.0
        # straight through; the gradients of the S samples are averaged
        codes = hard + (rows - rows.detach()) / S
        entropies = []
        for _ in range(S):
            p = model.decoder(codes.flatten(1)).sigmoid()
            entropies.append(-(images * p.log() + (1 - images) * (1 - p).log()).sum(dim=1))
        q = rows.softmax(dim=2)
        return torch.stack(entropies), (q * (q * config.code_n).log()).sum(dim=(1, 2))

    history = []
    for epoch in range(config.epochs):
        losses = []
        for batch in epoch_order(TRAIN, SEED, epoch).split(config.batch_size):
            entropies, divergences = figures(train[batch])
            loss = (entropies.sum(dim=0) + divergences).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        with torch.no_grad():
            entropies, divergences = figures(test)
        history.append(
            {
                "epoch": epoch + 1,
                "loss": statistics.fmean(losses),
                "loss_std": statistics.pstdev(losses),
                "test_loss": ((entropies.sum(dim=0) + divergences) / S).mean().item(),
                "test_nelbo": (entropies.mean(dim=0) + divergences).mean().item(),
            }
        )
    return history


def test_a_run_gives_the_figures_of_a_plain_loop(run):
    found = run(f"{FLAGS} -e 3")
    history = by_hand(f"{FLAGS} -e 3")
    for entry, expected in zip(found.record["history"], history, strict=True):
        assert {key: entry[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    for key in ("loss", "test_loss", "test_nelbo"):
        assert found.record["final"][key] == pytest.approx(history[-1][key], rel=1e-4)
    begin = "INFO:torch-vae-cli.py:"
    for entry in found.record["history"]:
        loss = f"Training Loss: {entry['loss']:.4f} ± {entry['loss_std']:.4f}"
        assert f"{begin}Epoch {entry['epoch']}/3\t{loss}\tTemperature: {entry['tau']:.5f}" in found.lines
        assert f"{begin}Average Test Loss: {entry['test_loss']:.5f}" in found.lines


def test_the_first_loss_is_the_mean_over_images_of_what_untrained_networks_give(run):
    line = f"{FLAGS} -e 1 --max-iterations 1"
    found = run(line).record["history"][0]
    seed_everything(SEED)
    model = build(cli.parse_arguments(line.split())[0])
    images = torch.as_tensor(make_digits()[0][0][:TRAIN, ::2, ::2]).flatten(1) / 255
    total = 0.0
    with torch.no_grad():
        for image in images[epoch_order(TRAIN, SEED, 0)[:100]]:
            rows = model.encoder(image).view(4, 6)
            code = torch.zeros(4, 6)
            for m in range(4):
                code[m, rows[m].topk(3).indices] = 1.0
                total += sum(q * math.log(6 * q) for q in rows[m].softmax(dim=0).tolist())
            for p, x in zip(model.decoder(code.flatten()).sigmoid().tolist(), image.tolist()):
                total -= S * (x * math.log(p) + (1 - x) * math.log(1 - p))  # both samples are alike
    assert found["loss"] == pytest.approx(total / 100, rel=1e-5)
    assert found["loss_std"] == 0


def test_codes_of_test_images_are_sampled_with_noise_of_the_runs_own_seed(run):
    found = run(f"{SMALL} -M imle --imle-temperature 1 --imle-samples {S} -e 1")
    model = build(cli.parse_arguments([*SMALL.split(), "--imle-temperature", "1", "--imle-samples", str(S)])[0])
    model.load_state_dict(found.checkpoint["parts"]["model"])
    images = torch.as_tensor(make_digits()[1][0][:TEST, ::2, ::2]).flatten(1) / 255
    torch.manual_seed(SEED)
    with torch.no_grad():
        figures = losses(*model.train()(images), images)
    assert found.record["final"]["test_loss"] == pytest.approx(published_test_loss(*figures).mean().item(), rel=1e-5)


@pytest.mark.parametrize("interrupted", [False, True])
def test_each_batch_has_the_temperature_of_the_schedule_also_after_resuming(run, monkeypatch, interrupted):
    """It is annealed every third batch here, of five an epoch; test losses are those of the temperature at the end."""
    every, rate, least = 3, 0.04, 0.6
    monkeypatch.setattr("aaai23.dvae.model.ANNEAL_EVERY", every)
    seen = {True: [], False: []}
    relax = methods.gumbel_softmax

    def spy(rows, temperature, **more):
        seen[torch.is_grad_enabled()].append(temperature)
        return relax(rows, temperature, **more)

    monkeypatch.setattr(methods, "gumbel_softmax", spy)
    line = f"{SMALL} -M gumbel-softmax --init-temperature 1 --anneal-rate {rate} --min-temperature {least} --resume"
    for epochs in (1, 2, 3) if interrupted else (3,):
        found = run(f"{line} -e {epochs}")

    def temperature(step):
        return max(math.exp(-rate * (step - step % every)), least) if step >= every else 1.0

    assert seen[True] == pytest.approx([temperature(step) for step in range(3 * STEPS)])
    ends = [temperature(STEPS), temperature(2 * STEPS), temperature(3 * STEPS)]
    assert seen[False] == pytest.approx(ends)
    assert [entry["tau"] for entry in found.record["history"]] == pytest.approx(ends)
    assert least == ends[-1] < temperature(3 * STEPS - 1) < ends[0] < 1


def test_the_optimiser_is_the_published_adam_over_all_weights(run):
    checkpoint = run(f"{FLAGS} -e 1 --max-iterations 1").checkpoint
    (group,) = checkpoint["parts"]["optimiser"]["param_groups"]
    assert (group["lr"], group["eps"], group["betas"], group["weight_decay"]) == (1e-3, 1e-8, (0.9, 0.999), 0)
    assert len(group["params"]) == len(checkpoint["parts"]["model"])


def test_wandb_is_told_the_published_keys_under_the_published_project(run):
    found = run(f"{FLAGS} -e 2 --max-iterations 6")
    told = found.told
    assert told.options["project"] == "aimle-dvae"
    assert told.options["name"] == f"ste-{SEED}"
    assert set(told.options["tags"]) >= {"vae", "ste"}
    assert [step for step, _ in told.logged] == [1, 2]
    assert all({"loss", "tau", "test_loss"} <= set(metrics) for _, metrics in told.logged)
    assert [{"epoch": step, **metrics} for step, metrics in told.logged] == found.record["history"]
    assert told.final == found.record["final"]
