"""Training and measuring on graphs of five vertices: the loss, its steps, what is kept, trials, resuming."""

import itertools
import logging
import math
from pathlib import Path

import pytest
import torch

from aaai23.errors import UsageError
from aaai23.harness.identity import finished
from aaai23.methods import METHODS as LAYERS
from aaai23.nri.evaluate import measure
from aaai23.nri.model import RelationalInference, build, kl_bernoulli
from aaai23.nri.plots import adjacency, draw_graphs
from aaai23.nri.score import BASELINES, NVILBaseline, surrogate
from aaai23.nri.train import Batches, optimiser_of, train_steps
from imle.structures import spanning_trees
from tests.aaai23.nri.runs import ADAPTIVE, SILENT, data_of, identity_of, record, train, trial_of
from tests.aaai23.settings import Settings

METHODS = {
    "sst tree": "",
    "sst tree, straight through": "--hard True --st True --max_range 15",
    "sst topk": "--sst topk",
    "sst topk, directed": "--sst topk --symmeterize_logits False",
    "sst indep": "--sst indep --use_gumbels_for_kl False",
    "aimle forward": ADAPTIVE,
    "aimle central": f"{ADAPTIVE} --aimle-symmetric --imle-samples 2",
    "imle": "--method imle --imle-lambda 10 --imle-noise gumbel --imle-noise-temperature 1.0",
    "ste": "--method ste --imle-noise-temperature 0.5",
    "nvil": "--use_nvil True",
    "reinforce ema": "--use_reinforce True",
    "reinforce batch": "--use_reinforce True --reinforce_baseline batch --sst indep",
    "reinforce multi_sample": "--use_reinforce True --reinforce_baseline multi_sample --num_samples 3",
}


def session(config):
    """Return a model, its optimiser and its batches."""
    torch.manual_seed(config.seed)
    model = build(config)
    optimiser = optimiser_of(model, config)
    return model, optimiser, Batches(config, optimiser, data_of(config)["train"])


def draw(model, theta):
    """Return a graph for each theta, as its layer chooses it."""
    return model.sample(theta, 5)[0]


def probability_of_tree(theta, dropped):
    """Return how likely the tree of the triangle without one edge is: that edge has the least Gumbel utility."""
    total = torch.zeros((), dtype=theta.dtype)
    for order in itertools.permutations(range(3)):
        if order[2] == dropped:
            first, second = theta[order[0]], theta[order[1]]
            total = total + (first - theta.logsumexp(0) + second - theta[list(order[1:])].logsumexp(0)).exp()
    return total


@pytest.mark.parametrize("baseline", ["none", "ema", "batch", "multi_sample", "nvil"])
def test_score_function_gradients_are_unbiased_with_every_baseline(baseline):
    theta = torch.tensor([0.3, -0.8, 0.5])
    losses = torch.tensor([3.0, 5.0, -1.0])  # of the trees without edge 0, 1, 2
    exact_theta = theta.clone().requires_grad_()
    sum(probability_of_tree(exact_theta, i) * losses[i] for i in range(3)).backward()

    class Zero(torch.nn.Module):
        def forward(self, losses, inputs):
            return torch.zeros_like(losses), losses.new_zeros(())

    made = {"none": Zero, "nvil": lambda: NVILBaseline(2, 0.5)}.get(baseline, lambda: BASELINES[baseline](0.5))()
    layer = LAYERS["reinforce"](spanning_trees(3), Settings(nb_samples=2))
    rows, inputs = 30000, torch.randn(30000, 2)
    spread = {}
    for _ in range(2):  # the second time, running means are under way
        leaf = theta.expand(rows, 3).clone().requires_grad_()
        edges, log_prob = layer.sample(leaf)
        nll = (1 - edges) @ losses
        loss = surrogate(nll, log_prob, made, inputs)
        torch.testing.assert_close(loss, nll)
        loss.sum().backward()
        estimates = leaf.grad / 2
        spread = estimates.std(dim=0)
    assert ((estimates.mean(dim=0) - exact_theta.grad).abs() < 5 * spread / math.sqrt(rows)).all()


def test_a_baseline_makes_the_gradient_less_noisy():
    def noise(baseline):
        torch.manual_seed(0)
        layer = LAYERS["reinforce"](spanning_trees(5), Settings(nb_samples=2))
        theta = torch.zeros(2000, 10, requires_grad=True)
        for _ in range(2):
            theta.grad = None
            edges, log_prob = layer.sample(theta)
            surrogate(100 + edges[:, 0], log_prob, baseline, torch.zeros(2000, 1)).sum().backward()
        return theta.grad.std().item()

    without = noise(BASELINES["ema"](1.0))  # stays at 0
    for name in ("ema", "batch", "multi_sample"):
        assert noise(BASELINES[name](0.9)) < 0.1 * without


def test_the_nvil_network_learns_to_predict_the_loss():
    baseline = NVILBaseline(3, 0.9)
    optimiser = torch.optim.Adam(baseline.parameters(), lr=1e-2)
    inputs = torch.randn(256, 3)
    losses = (5 * inputs[:, :1] + 100).expand(-1, 2)
    misfits = []
    for _ in range(150):
        _, misfit = baseline(losses, inputs)
        optimiser.zero_grad()
        misfit.backward()
        optimiser.step()
        misfits.append(misfit.item())
    assert misfits[-1] < 1 < misfits[1]


def test_bernoulli_divergence_is_the_sum_over_both_values():
    theta = torch.randn(3, 20, dtype=torch.float64)
    q = torch.sigmoid(theta)
    expected = (q * (2 * q).log() + (1 - q) * (2 * (1 - q)).log()).sum(-1) / 5
    torch.testing.assert_close(kl_bernoulli(theta, 5), expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_goes_down_and_gradients_reach_the_encoder(parse, method):
    config = parse(METHODS[method])
    model, optimiser, batches = session(config)
    before = {name: weight.clone() for name, weight in model.encoder.named_parameters()}
    losses = train_steps(model, optimiser, batches, 0, 16, config, SILENT)
    assert len(losses) == 16 and losses[-3:].sum() < 0.8 * losses[:3].sum()
    assert all((weight != before[name]).any() for name, weight in model.encoder.named_parameters())


@pytest.mark.parametrize("method", METHODS)
def test_the_likelihood_alone_moves_the_logits(parse, method):
    config = parse(f"{METHODS[method]} --imle-lambda 1.0" if "aimle" in METHODS[method] else METHODS[method])
    model = build(config)
    model.divergence = lambda theta, vertices: torch.zeros(len(theta))
    for _ in range(2):
        model.loss(data_of(config)["train"].positions[:32], 5).backward()
    assert model.encoder.fc_out.weight.grad.abs().max() > 0


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_draws_discrete_graphs_of_the_structure(parse, monkeypatch, method):
    config = parse(METHODS[method])
    model, split = build(config), data_of(config)["valid"]
    seen, decode = [], model.decoder.forward
    monkeypatch.setattr(model.decoder, "forward", lambda x, z, steps: seen.append(z) or decode(x, z, steps))
    measure(model, split, config, seed=1)
    assert len(seen) == (4 if "imle" in config.method else 2)  # batches of 10 of 20 graphs
    for edges in seen:
        assert len(edges) == 10 and not edges.requires_grad
        assert set(edges.unique().tolist()) <= {0.0, 1.0}
        if config.sst != "indep":
            assert (model.directed(edges, 5).sum(-1) == 8).all()


def test_the_published_settings_reach_the_estimator(parse):
    layer = build(parse(ADAPTIVE)).layer
    estimator, target = layer.estimator, layer.target_distribution
    assert (target.beta, target.target_norm, target.beta_update_step, target.grad_norm) == (0.0, 1.0, 0.001, 1.0)
    assert (estimator.theta_noise_temperature, estimator.target_noise_temperature) == (1.0, 1.0)
    assert (estimator.noise_distribution.k, estimator.noise_distribution.nb_iterations) == (5, 10)
    assert not estimator.symmetric_perturbation


def test_loss_is_the_mean_of_likelihood_and_divergence(parse):
    config = parse("--sst topk --method ste")  # no noise
    model = build(config).eval()
    inputs = data_of(config)["valid"].positions
    theta = model.logits(inputs)
    edges = draw(model, theta)
    error = model.decoder(inputs, edges, 5) - inputs[:, :, 1:]
    directed = model.directed(theta, 5)
    by_hand = error.square().sum((1, 2, 3)) / (2 * config.var) / 5 + (directed + (-directed).exp() - 1).sum(-1) / 5
    torch.testing.assert_close(model.loss(inputs, 5), by_hand.mean())


def test_iterations_are_exact_and_evaluations_where_they_belong(parse, monkeypatch):
    steps, loss = [], RelationalInference.loss
    monkeypatch.setattr(RelationalInference, "loss", lambda *arguments: steps.append(1) or loss(*arguments))
    for flags, taken, evaluations in (
        ("--max-steps 5", 5, [0, 4, 5]),
        ("--num_iterations 10 --resume", 5, [0, 4, 5, 8, 10]),
        ("--num_iterations 10 --name y --experiments_folder y", 10, [0, 4, 8, 10]),
    ):
        steps.clear()
        config = parse(flags)
        train(config)
        assert len(steps) == taken
        assert [entry["iteration"] for entry in record(config).history] == evaluations


def test_an_epoch_shows_each_graph_once_and_another_order_comes_next(parse):
    config = parse("--batch_size 10")
    _, _, batches = session(config)
    everything = {graph.numpy().tobytes(): index for index, graph in enumerate(data_of(config)["train"].positions)}
    seen = [[everything[graph.numpy().tobytes()] for i in range(7) for graph in batches(7 * e + i)] for e in range(2)]
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(70)) and seen[0] != seen[1]


def test_the_learning_rate_falls_by_gamma_every_lr_decay_epochs(parse):
    config = parse("--lr 0.01 --lr_decay 2 --gamma 0.1 --num_iterations 9 --eval_every 3")
    train(config)  # two batches of 32 an epoch
    rates = [entry["lr"] for entry in record(config).history]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.0001])


def test_steps_are_those_of_adam_with_the_rates_that_were_given(parse):
    config = parse("--use_nvil True --lr 0.01 --enc_weight_decay 0.5 --dec_weight_decay 2.0 --var 1.0")
    model, optimiser, batches = session(config)
    decays = {"encoder": 0.5, "decoder": 2.0, "baseline": 0.0}
    names = [name for name, _ in model.named_parameters()]
    assert {name.partition(".")[0] for name in names} == set(decays)
    mean, square = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for step in (1, 2):
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        train_steps(model, optimiser, batches, step - 1, step, config, SILENT)
        for name, weight in model.named_parameters():
            slope = weight.grad + decays[name.partition(".")[0]] * before[name]
            mean[name] = 0.9 * mean[name] + 0.1 * slope
            square[name] = 0.999 * square[name] + 0.001 * slope**2
            first, second = mean[name] / (1 - 0.9**step), square[name] / (1 - 0.999**step)
            torch.testing.assert_close(weight.detach(), before[name] - 0.01 * first / (second.sqrt() + 1e-8))


@pytest.mark.parametrize(("right", "reading"), [(("valid",), "as_is"), (("test", "train"), "flipped")])
def test_the_reading_of_the_edges_is_chosen_on_validation_graphs_for_all(parse, monkeypatch, right, reading):
    config = parse("--log_edge_metric_train True --max-steps 1")
    known = {
        graph.numpy().tobytes(): edges if split in right else 1 - edges
        for split, layouts in data_of(config).items()
        for graph, edges in zip(layouts.positions, layouts.edges)
    }

    def sure(model, inputs):
        """Be sure of every edge: one reading is right about validation graphs, the other one about all others."""
        theta = torch.stack([100 * known[graph.numpy().tobytes()] for graph in inputs])
        return theta + 0 * model.encoder(inputs).mean()

    monkeypatch.setattr(RelationalInference, "logits", sure)
    final = train(config)
    found = record(config).history[-1]
    assert found["edge_reading"] == final["edge_reading"] == reading
    assert found["val_precision"] == final["val_precision"] > 0.6
    assert max(found["train_precision"], final["test_precision"]) < 0.1


def test_a_run_is_reproducible_to_the_last_digit(parse):
    records = []
    for name in ("a", "b"):
        config = parse(f"{ADAPTIVE} --seed 7 --experiments_folder {name} --again")
        train(config)
        records.append(record(config).compared())
    assert records[0] == records[1]
    assert records[0]["final"]["test_elbo"] < 0


def test_the_perturbation_size_is_logged(parse):
    config = parse(ADAPTIVE)
    train(config)
    assert [entry["beta"] for entry in record(config).history] == pytest.approx([0, 0.004, 0.006])


@pytest.mark.parametrize("method", ["aimle forward", "nvil", "sst tree"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(parse, method):
    whole = parse(f"{METHODS[method]} --name whole --experiments_folder whole")
    train(whole)
    stopped = f"{METHODS[method]} --name parts --experiments_folder parts"
    config = parse(f"{stopped} --max-steps 4")
    train(config)
    config = parse(f"{stopped} --resume")
    final = train(config)
    assert record(config).history == record(whole).history
    assert final == record(whole).final
    kept = [torch.load(identity_of(it).file(".pt"), weights_only=True)["parts"]["model"] for it in (whole, config)]
    exported = [torch.load(trial_of(it) / "encoder.pt", weights_only=True) for it in (whole, config)]
    for states in (kept, exported):
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0] if "_extra_state" not in key)


def test_a_limit_on_steps_that_is_raised_is_more_work_and_one_that_is_lowered_is_none(parse):
    train(parse("--max-steps 2"))
    for flags, there in (("--max-steps 1", True), ("--max-steps 2", True), ("--max-steps 3", False), ("", False)):
        assert (finished(identity_of(parse(flags))) is not None) == there


def test_resuming_with_other_settings_is_refused(parse):
    train(parse("--max-steps 1"))
    with pytest.raises(UsageError, match="lr"):
        train(parse("--temp 0.5 --gamma 0.9 --resume"))


WILD = "--lr 0.3 --num_iterations 12"  # such a learning rate spoils what there was


def test_best_weights_are_kept_and_on_demand_the_last(parse):
    for flag, pick in (("True", lambda elbos: max(elbos)), ("False", lambda elbos: elbos[-1])):
        config = parse(f"--save_best_model {flag} --name {flag} --experiments_folder {flag} {WILD}")
        train(config)
        elbos = [entry["val_elbo"] for entry in record(config).history]
        assert elbos[-1] < max(elbos)
        assert record(config).final["val_elbo"] == pick(elbos)


def test_edge_metrics_are_logged_as_asked(parse):
    config = parse("--log_edge_metric_train True --log_edge_metric_val False --max-steps 1")
    train(config)
    entry = record(config).history[-1]
    assert {"train_acc", "train_precision", "train_recall"} <= entry.keys()
    assert "val_precision" not in entry and "val_elbo" in entry
    assert "val_precision" in record(config).final


def test_pictures_lie_beside_the_record(parse):
    config = parse("--max-steps 1")
    train(config)
    for name in ("graphs", "curves"):
        assert Path(f"results/nri/x/seed42_{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_graphs_of_any_number_of_dimensions_are_drawn(tmp_path, dims):
    edges = torch.ones(3, 4, 4).triu(1).bool()
    draw_graphs(tmp_path / "graphs.png", torch.randn(3, 4, dims), edges, ~edges, "title")
    assert (tmp_path / "graphs.png").exists()


def test_adjacency_of_directed_edges_is_symmetric():
    directed = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]])  # receiver 0, sender 2
    expected = torch.tensor([[[0, 0, 1], [0, 0, 0], [1, 0, 0]]], dtype=torch.bool)
    assert torch.equal(adjacency(directed, 3), expected)


def test_verbose_logs_each_step(parse, caplog):
    with caplog.at_level(logging.INFO, logger="silent"):
        train(parse("--verbose True --max-steps 2"))
    assert [message.split("\t")[0] for message in caplog.messages if "Loss value" in message] == [
        "Iteration 1",
        "Iteration 2",
    ]
    assert not torch.is_anomaly_enabled()


def test_a_loss_that_is_not_finite_ends_the_run(parse):
    config = parse("--lr 1e30 --num_iterations 4")
    with pytest.raises(FloatingPointError):
        train(config)
    assert record(config).status == "failed"
