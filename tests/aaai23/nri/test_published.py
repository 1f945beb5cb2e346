"""What the published figures rest on: layers that see both directions of an edge, and bounds along MAP trees.

The yardsticks are loops over single graphs, edges and numbers.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from aaai23.harness.config import refuse
from aaai23.methods import NOISES
from aaai23.nri import cli
from aaai23.nri.data import Layouts
from aaai23.nri.evaluate import measure
from aaai23.nri.model import build
from aaai23.nri.networks import MLPDecoder, MLPEncoder
from imle.noise import BaseNoiseDistribution, GumbelNoiseDistribution, SumOfGammaNoiseDistribution

VERTICES = 5
PAIRS = [(low, high) for low in range(VERTICES) for high in range(low + 1, VERTICES)]
DIRECTED = [(receiver, sender) for receiver in range(VERTICES) for sender in range(VERTICES) if receiver != sender]
SMALL = "--num_vertices 5 --timesteps 7 --prediction_steps 5 --encoder_hidden 8 --decoder_hidden 8"
AIMLE = "--method aimle --aimle-target adaptive --imle-noise-temperature 1.0 --imle-lambda-update-step 0.001"


def parse(text):
    config, _ = cli.parse_arguments([*SMALL.split(), *text.split()])
    refuse(config)
    return config


# Both directions of an edge


def kruskal(weights):
    """Return the edges of the best spanning tree, for weights by (low, high)."""
    part, tree = list(range(VERTICES)), set()
    for low, high in sorted(PAIRS, key=lambda pair: -weights[pair]):
        if part[low] != part[high]:
            tree.add((low, high))
            part = [part[low] if p == part[high] else p for p in part]
    return tree


def best_tree(directed):
    """Return both directions of the tree that the entries with receiver > sender give."""
    by_edge = dict(zip(DIRECTED, directed, strict=True))
    tree = kruskal({(low, high): by_edge[high, low] for low, high in PAIRS})
    return [float((min(edge), max(edge)) in tree) for edge in DIRECTED]


def plain_step(theta, noise, dy, state, method, tau):
    """Return z, g `[B, U]`, the count of non-zero entries of a graph, and the next state: one step over 2U entries."""
    directed = [[row[PAIRS.index((min(edge), max(edge)))] for edge in DIRECTED] for row in theta]
    beta, mean_count = state
    size = lambda rows: math.sqrt(sum(x * x for row in rows for x in row))  # noqa: E731
    step = beta if method == "imle" else beta * size(directed) / size(dy)

    def solve(sign):
        return [
            best_tree([t + tau * e + sign * step * d for t, e, d in zip(*rows, strict=True)])
            for rows in zip(directed, noise, dy, strict=True)
        ]

    z, minus = solve(0), solve(-1)
    first, share = (solve(1), 0.5) if method == "central" else (z, 1.0)
    g = [[share * (a - b) for a, b in zip(*rows, strict=True)] for rows in zip(first, minus, strict=True)]
    count = sum(x != 0 for row in g for x in row) / len(g)
    if method != "imle":
        mean_count = 0.9 * mean_count + 0.1 * count
        beta += 0.001 if mean_count < 1 else -0.001
        g = [[x / step for x in row] for row in g]
    both = [[row[DIRECTED.index((low, high))] + row[DIRECTED.index((high, low))] for low, high in PAIRS] for row in g]
    return z, both, count, (beta, mean_count)


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("forward", f"{AIMLE} --imle-lambda 0.4"),
        ("central", f"{AIMLE} --imle-lambda 0.4 --aimle-symmetric"),
        ("imle", "--method imle --imle-lambda 2.0 --imle-noise-temperature 1.0"),
    ],
)
def test_layers_see_both_directions_and_read_one_half(method, flags):
    model = build(parse(flags))
    generator = torch.Generator().manual_seed(5)
    state, counts = (0.4 if method != "imle" else 2.0, 1.0), []
    for step in range(3):
        theta = torch.randn(4, 10, dtype=torch.float64, generator=generator, requires_grad=True)
        dy = torch.randn(4, 20, dtype=torch.float64, generator=generator)
        torch.manual_seed(step)
        edges, _ = model.sample(theta, VERTICES)
        (edges * dy).sum().backward()
        torch.manual_seed(step)
        noise = SumOfGammaNoiseDistribution(k=VERTICES, nb_iterations=10).sample((4, 1, 20), dtype=torch.float64)
        z, g, count, state = plain_step(theta.tolist(), noise[:, 0].tolist(), dy.tolist(), state, method, tau=1.0)
        assert edges.tolist() == z
        torch.testing.assert_close(theta.grad, torch.tensor(g, dtype=torch.float64))
        target = model.layer.target_distribution
        counts.append(count)
        if method != "imle":
            assert (target.beta, target.grad_norm) == pytest.approx(state)
    assert max(counts) >= 1


def test_undirected_theta_is_what_the_layer_sees_on_demand():
    theta = torch.randn(3, 10)
    assert build(parse(AIMLE)).sample(theta, VERTICES)[0].shape == (3, 20)
    for flags in (f"{AIMLE} --undirected-theta", "--method ste", f"{AIMLE} --sst topk", "--use_nvil True", ""):
        assert build(parse(flags)).sample(theta, VERTICES)[0].shape == (3, 10)


# Bounds


def layouts(count):
    return Layouts(torch.rand(count, VERTICES, 7, 2) * 2 - 1, (torch.rand(count, 10) < 0.4).float())


def plain_networks(model):
    """Return plain networks with the weights of a model."""
    encoder, decoder = MLPEncoder(14, hidden=8), MLPDecoder(hidden=8)
    encoder.load_state_dict(model.encoder.state_dict(), strict=False)  # statistics may be switched off
    decoder.load_state_dict(model.decoder.state_dict())
    return encoder, decoder


def plain_graph(decoder, x, logits, steps, edges=None):
    """Return likelihood and divergence of one graph `[n, T, dims]`, along its MAP tree or given edges `[U]`."""
    by_edge = dict(zip(DIRECTED, logits, strict=True))
    mean = {(low, high): (by_edge[low, high] + by_edge[high, low]) / 2 for low, high in PAIRS}
    graph = kruskal(mean) if edges is None else {pair for pair, there in zip(PAIRS, edges) if there}
    z = torch.tensor([[float((min(e), max(e)) in graph) for e in DIRECTED]])
    predicted = decoder(x[None], z, steps)[0].tolist()
    nll = 0.0
    for vertex in range(VERTICES):
        for frame in range(6):
            for axis in range(2):
                error = predicted[vertex][frame][axis] - x[vertex, frame + 1, axis].item()
                nll += error**2 / (2 * 5e-5) / VERTICES
    return nll, sum(2 * (l + math.exp(-l) - 1) for l in mean.values()) / VERTICES  # noqa: E741


def plain_bound(model, split, batch_size, edges=None, batch_statistics=False):
    """Return the bound of a split, along MAP trees or given edges `[N, U]`, each frame predicted from the last."""
    encoder, decoder = plain_networks(model)
    encoder.train(batch_statistics)
    logits = torch.cat([encoder(part) for part in split.positions.split(batch_size)]).tolist()
    edges = [None] * len(split) if edges is None else edges
    terms = [plain_graph(decoder, x, row, 1, tree) for x, row, tree in zip(split.positions, logits, edges, strict=True)]
    return -sum(nll + kl for nll, kl in terms) / len(split)


def trained(flags):
    """Return networks whose statistics of training are not those of a batch, and their flags."""
    config = parse(f"{flags} --eval_batch_size 5")
    model = build(config)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(20):
        optimiser.zero_grad()
        model.loss(layouts(8).positions, 5).backward()
        optimiser.step()
    return model, config


@pytest.mark.parametrize("flags", [AIMLE, "--method imle --imle-lambda 1.0 --imle-noise-temperature 1.0"])
@torch.no_grad()
def test_the_bound_is_that_of_map_trees_with_the_statistics_of_training(flags):
    with torch.enable_grad():
        model, config = trained(flags)
    split = layouts(10)
    found = measure(model, split, config, seed=1)
    running, batch = plain_bound(model, split, 5), plain_bound(model, split, 5, batch_statistics=True)
    assert found["elbo"] == pytest.approx(running, rel=1e-5) and abs(running - batch) > 5e-5 * abs(batch)
    for module in model.encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean = module.running_var = None  # as the authors' program leaves it
    assert measure(model, split, config, seed=1)["elbo"] == pytest.approx(batch, rel=1e-5)


@torch.no_grad()
def test_the_bound_along_sampled_trees_stands_beside_it():
    with torch.enable_grad():
        model, config = trained(AIMLE)
    split = layouts(10)
    found = measure(model, split, config, seed=1)
    noise = SumOfGammaNoiseDistribution(k=VERTICES).sample((10, 20), generator=torch.Generator().manual_seed(1))
    trees = []
    for logits, row in zip(model.logits(split.positions).tolist(), noise.tolist()):
        by_edge = dict(zip(PAIRS, logits))
        tree = best_tree([by_edge[min(edge), max(edge)] + e for edge, e in zip(DIRECTED, row)])
        trees.append([tree[DIRECTED.index(pair)] for pair in PAIRS])
    assert found["elbo_sampled"] == pytest.approx(plain_bound(model, split, 5, trees), rel=1e-5)
    assert found["elbo_sampled"] != found["elbo"] == pytest.approx(-found["nll"] - found["kl"])


@pytest.mark.parametrize("flags", ["--method ste --imle-noise-temperature 1.0", "", "--use_nvil True"])
@torch.no_grad()
def test_other_methods_are_measured_along_the_trees_they_draw(flags):
    with torch.enable_grad():
        model, config = trained(flags)
    split = layouts(10)
    found = measure(model, split, config, seed=1)
    noise = SumOfGammaNoiseDistribution(k=VERTICES) if "ste" in flags else GumbelNoiseDistribution()
    utilities = model.logits(split.positions) + noise.sample((10, 10), generator=torch.Generator().manual_seed(1))
    trees = [[pair in kruskal(dict(zip(PAIRS, row))) for pair in PAIRS] for row in utilities.tolist()]
    assert found["elbo"] == pytest.approx(plain_bound(model, split, 5, trees), rel=1e-5)
    assert "elbo_sampled" not in found


def test_figures_do_not_depend_on_batches_that_do_not_divide_the_split():
    model, config = trained(AIMLE)
    split = layouts(10)
    whole = measure(model, split, replace(config, eval_batch_size=10), seed=1)
    reading = whole.pop("edge_reading")
    for size in (3, 4, 7, 100):
        found = measure(model, split, replace(config, eval_batch_size=size), seed=1)
        assert found.pop("edge_reading") == reading and found == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 5, 7])
@torch.no_grad()
def test_the_loss_is_a_loop_over_graphs_frames_and_coordinates(steps):
    model = build(parse("--method aimle --aimle-target adaptive --imle-noise none"))
    positions = layouts(7).positions
    encoder, decoder = plain_networks(model)
    terms = [plain_graph(decoder, x, row, steps) for x, row in zip(positions, encoder(positions).tolist(), strict=True)]
    expected = sum(nll + kl for nll, kl in terms) / 7
    assert model.loss(positions, steps).item() == pytest.approx(expected, rel=1e-5)


# Samples


class Repeated(BaseNoiseDistribution):
    """Gumbel noise that is the same for all samples of an instance."""

    def sample(self, shape, *, device=None, dtype=None, generator=None):
        first = GumbelNoiseDistribution().sample((shape[0], 1, *shape[2:]), dtype=dtype, generator=generator)
        return first.expand(shape).clone()

    def log_prob(self, value):
        return GumbelNoiseDistribution().log_prob(value)


SAMPLED = {
    "ste": "--method ste",
    "imle": "--method imle --imle-lambda 20000",
    "aimle forward": f"{AIMLE} --imle-lambda 0.5",
    "aimle central": f"{AIMLE} --imle-lambda 0.5 --aimle-symmetric",
    "aimle undirected": f"{AIMLE} --imle-lambda 0.5 --undirected-theta",
    "aimle standard": "--method aimle --imle-lambda 20000 --gradient-scaling",
    "nvil": "--use_nvil True",
    "reinforce": "--use_reinforce True",
}


def sampled(method, samples):
    score = "nvil" in method or "reinforce" in method
    flags = f"--num_samples {samples}" if score else f"--imle-noise-temperature 1.0 --imle-samples {samples}"
    return parse(f"{SAMPLED[method]} --imle-noise gumbel {flags}")


@pytest.mark.parametrize("method", SAMPLED)
def test_identical_samples_give_the_gradient_of_one(method, monkeypatch):
    monkeypatch.setitem(NOISES, "gumbel", lambda k: Repeated())
    monkeypatch.setattr("imle.structures.GumbelNoiseDistribution", Repeated)
    positions = layouts(6).positions.double()
    found = []
    for samples in (1, 4):
        torch.manual_seed(0)
        model = build(sampled(method, samples)).double()
        for _ in range(2):  # the second time, baselines are under way
            torch.manual_seed(1)
            model.zero_grad()
            loss = model.loss(positions, 5)
            loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for one, four in zip(*found, strict=True):
        torch.testing.assert_close(four, one)
    assert found[0][1].abs().max() > 0


class FarFrom(nn.Module):
    """A decoder whose error depends on all edges of a graph at once, and on a weight of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))

    def forward(self, inputs, edges, prediction_steps):
        score = edges @ torch.linspace(-1, 2, edges.shape[1])
        return inputs[:, :, 1:].repeat_interleave(len(edges) // len(inputs), 0) + self.weight * score.view(-1, 1, 1, 1)


@pytest.mark.parametrize("method", SAMPLED)
def test_more_samples_leave_the_mean_gradient_as_it_is(method):
    rows = 20000
    positions, theta = torch.zeros(rows, VERTICES, 7, 2), torch.linspace(-0.5, 0.5, 10)
    means, errors, decoders = [], [], []
    for samples in (1, 4):
        model = build(replace(sampled(method, samples), var=0.2))
        model.decoder = FarFrom()
        leaf = theta.expand(rows, 10).clone().requires_grad_()
        model.logits = lambda inputs, leaf=leaf: leaf
        model.divergence = lambda theta, vertices: torch.zeros(len(theta))
        for _ in range(2):  # running means are under way the second time
            leaf.grad = model.decoder.weight.grad = None
            model.loss(positions, 2).backward()
        gradient = leaf.grad * rows
        means.append(gradient.mean(dim=0))
        errors.append(gradient.std(dim=0) / math.sqrt(rows))
        decoders.append(model.decoder.weight.grad.item())
    assert ((means[0] - means[1]).abs() < 5 * (errors[0] ** 2 + errors[1] ** 2).sqrt() + 1e-6).all()
    assert means[0].norm() > 20 * errors[0].norm()
    assert decoders[0] == pytest.approx(decoders[1], rel=0.03)
