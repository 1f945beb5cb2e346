import itertools
import json
import logging
import math
from pathlib import Path

import pytest
import torch

from aaai23.arguments import config_of
from aaai23.errors import UsageError
from aaai23.nri import cli
from aaai23.nri.data import load
from aaai23.nri.evaluate import evaluate_trials, measure
from aaai23.nri.inference import build, kl_bernoulli
from aaai23.nri.methods import BASELINES, STRUCTURES, LogisticNoise, NVILBaseline, ScoreSampler, build_sampler
from aaai23.nri.picture import adjacency
from aaai23.nri.simulate import write
from aaai23.nri.train import Session, run_seed
from aaai23.nri.trial import save_weights, trial_folder
from aaai23.run import comparable
from imle.noise import GumbelNoiseDistribution
from imle.solvers import spanning_tree_edges

SUFFIX = "_novar_1skip_6t_1r_graph5"
TINY = (
    f"--suffix {SUFFIX} --num_vertices 5 --timesteps 6 --prediction_steps 5 --encoder_hidden 16 --decoder_hidden 16 "
    "--lr 0.003 --batch_size 32 --eval_batch_size 10 --num_iterations 6 --eval_every 4 --temp 0.5"
)
ADAPTIVE = "--method aimle --aimle-target adaptive --imle-lambda-update-step 0.001 --imle-noise-temperature 1.0"
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
SILENT = logging.getLogger("silent")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nri")
    write(folder, 6, nb_vertices=5, sizes=(70, 20, 10))
    return folder


@pytest.fixture
def parse(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def parse(text=""):
        args = cli.parser().parse_args([*TINY.split(), "--data-dir", str(folder), "--name", "x", *text.split()])
        cli.check(args)
        args.experiments_folder = args.experiments_folder or "trials"
        return args

    return parse


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    if "pictures" not in request.node.name:
        monkeypatch.setattr("aaai23.nri.train.draw_pictures", lambda *_: None)


def data_of(args):
    return load(args.data_dir, args.suffix, args.timesteps, args.num_vertices, args.dims)


def train(args):
    return run_seed(args, data_of(args), CPU, SILENT)


def record(args):
    return json.loads(Path(f"results/nri/{args.name}/seed{args.seed}.json").read_text())


def probability_of_tree(theta, dropped):
    """Return how likely the tree of the triangle without one edge is: that edge has the least Gumbel utility."""
    total = torch.zeros((), dtype=theta.dtype)
    for order in itertools.permutations(range(3)):
        if order[2] == dropped:
            first, second = theta[order[0]], theta[order[1]]
            total = total + (first - theta.logsumexp(0) + second - theta[list(order[1:])].logsumexp(0)).exp()
    return total


@pytest.mark.parametrize("baseline", ["none", "ema", "batch", "multi_sample", "nvil"])
def test_score_function_gradients_are_unbiased_with_every_baseline(parse, baseline):
    args = parse("--ema_for_loss 0.5")
    theta = torch.tensor([0.3, -0.8, 0.5])
    losses = torch.tensor([3.0, 5.0, -1.0])  # of the trees without edge 0, 1, 2
    exact_theta = theta.clone().requires_grad_()
    sum(probability_of_tree(exact_theta, i) * losses[i] for i in range(3)).backward()

    class Zero(torch.nn.Module):
        def forward(self, losses, inputs):
            return torch.zeros_like(losses), losses.new_zeros(())

    made = {"none": Zero, "nvil": lambda: NVILBaseline(2, 0.5)}.get(baseline, lambda: BASELINES[baseline](args))()
    sampler = ScoreSampler(STRUCTURES["tree"](args), 2, made)
    rows, inputs = 30000, torch.randn(30000, 2)
    spread = {}
    for _ in range(2):  # the second time, running means are under way
        leaf = theta.expand(rows, 3).clone().requires_grad_()
        edges, log_prob = sampler(leaf)
        nll = (1 - edges) @ losses
        surrogate = sampler.surrogate(nll, log_prob, inputs)
        torch.testing.assert_close(surrogate, nll)
        surrogate.sum().backward()
        estimates = leaf.grad / 2
        spread = estimates.std(dim=0)
    assert ((estimates.mean(dim=0) - exact_theta.grad).abs() < 5 * spread / math.sqrt(rows)).all()


def test_a_baseline_makes_the_gradient_less_noisy(parse):
    args = parse()
    structure = STRUCTURES["tree"](args)

    def noise(baseline):
        torch.manual_seed(0)
        sampler = ScoreSampler(structure, 2, baseline)
        theta = torch.zeros(2000, 10, requires_grad=True)
        for _ in range(2):
            theta.grad = None
            edges, log_prob = sampler(theta)
            sampler.surrogate(100 + edges[:, 0], log_prob, torch.zeros(2000, 1)).sum().backward()
        return theta.grad.std().item()

    without = noise(BASELINES["ema"](parse("--ema_for_loss 1.0")))  # stays at 0
    for name in ("ema", "batch", "multi_sample"):
        assert noise(BASELINES[name](parse("--ema_for_loss 0.9"))) < 0.1 * without


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


def test_relaxed_gradients_are_those_of_the_marginals(parse):
    sampler = build_sampler(parse("--temp 0.7 --max_range 15")).double()
    theta = torch.randn(2, 10, dtype=torch.float64, requires_grad=True)

    def sample(theta):
        torch.manual_seed(5)
        return sampler(theta)[0]

    assert torch.autograd.gradcheck(sample, theta)
    torch.testing.assert_close(sample(theta).sum(-1), torch.full((2,), 4.0, dtype=torch.float64))


def test_straight_through_samples_are_trees_with_the_gradient_of_the_relaxed_ones(parse):
    direction = torch.randn(3, 10)
    theta = torch.randn(3, 10)

    def sample(text):
        torch.manual_seed(5)
        leaf = theta.clone().requires_grad_()
        z, _ = build_sampler(parse(text))(leaf)
        (z * direction).sum().backward()
        return z.detach(), leaf.grad

    hard, hard_gradient = sample("--hard True --st True")
    soft, soft_gradient = sample("")
    torch.manual_seed(5)
    utilities = theta + GumbelNoiseDistribution().sample(theta.shape)
    torch.testing.assert_close(hard, spanning_tree_edges(utilities))
    assert ((soft > 0) & (soft < 1)).all()
    torch.testing.assert_close(hard_gradient, soft_gradient)
    assert hard_gradient.abs().max() > 0


def test_logistic_noise_has_the_logistic_density():
    noise = LogisticNoise()
    draws = noise.sample((200000,))
    assert abs((draws < 1.0).float().mean().item() - 1 / (1 + math.exp(-1))) < 0.005
    grid = torch.linspace(-40, 40, 20001, dtype=torch.float64)
    assert abs(torch.trapezoid(noise.log_prob(grid).exp(), grid).item() - 1) < 1e-9
    below = grid <= 1
    assert abs(torch.trapezoid(noise.log_prob(grid[below]).exp(), grid[below]).item() - 1 / (1 + math.exp(-1))) < 1e-6


def test_bernoulli_divergence_is_the_sum_over_both_values():
    theta = torch.randn(3, 20, dtype=torch.float64)
    q = torch.sigmoid(theta)
    expected = (q * (2 * q).log() + (1 - q) * (2 * (1 - q)).log()).sum(-1) / 5
    torch.testing.assert_close(kl_bernoulli(theta, 5), expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_goes_down_and_gradients_reach_the_encoder(parse, method):
    args = parse(METHODS[method])
    session = Session(args, data_of(args), trial_folder(args), CPU)
    before = {name: weight.clone() for name, weight in session.model.encoder.named_parameters()}
    losses = session.train_until(16, None)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert all((weight != before[name]).any() for name, weight in session.model.encoder.named_parameters())


@pytest.mark.parametrize("method", METHODS)
def test_the_likelihood_alone_moves_the_logits(parse, method):
    args = parse(f"{METHODS[method]} --imle-lambda 1.0" if "aimle" in METHODS[method] else METHODS[method])
    model = build(args)
    model.divergence = lambda theta, vertices: torch.zeros(len(theta))
    for _ in range(2):
        model.loss(data_of(args)["train"].positions[:32], 5).backward()
    assert model.encoder.fc_out.weight.grad.abs().max() > 0


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_draws_discrete_graphs_of_the_structure(parse, method):
    args = parse(METHODS[method])
    model = build(args).eval()
    inputs = data_of(args)["valid"].positions
    theta = model.logits(inputs)
    edges = model.sampler.draw(theta)
    assert edges.shape == theta.shape and not edges.requires_grad
    assert set(edges.unique().tolist()) <= {0.0, 1.0}
    if args.sst != "indep":
        assert (model.directed(edges, 5).sum(-1) == 8).all()


def test_the_published_settings_reach_the_estimator(parse):
    sampler = build_sampler(parse(ADAPTIVE))
    estimator, target = sampler.layer.estimator, sampler.layer.target_distribution
    assert (target.beta, target.target_norm, target.beta_update_step, target.grad_norm) == (0.0, 1.0, 0.001, 1.0)
    assert (estimator.theta_noise_temperature, estimator.target_noise_temperature) == (1.0, 1.0)
    assert (estimator.noise_distribution.k, estimator.noise_distribution.nb_iterations) == (5, 10)
    assert not estimator.symmetric_perturbation


def test_loss_is_the_mean_of_likelihood_and_divergence(parse):
    args = parse("--sst topk --method ste")  # no noise
    model = build(args).eval()
    inputs = data_of(args)["valid"].positions
    theta = model.logits(inputs)
    edges = model.sampler.draw(theta)
    error = model.decoder(inputs, edges, 5) - inputs[:, :, 1:]
    directed = model.directed(theta, 5)
    by_hand = error.square().sum((1, 2, 3)) / (2 * args.var) / 5 + (directed + (-directed).exp() - 1).sum(-1) / 5
    torch.testing.assert_close(model.loss(inputs, 5), by_hand.mean())


def test_iterations_are_exact_and_evaluations_where_they_belong(parse):
    args = parse("--num_iterations 10")
    train(args)
    assert [entry["iteration"] for entry in record(args)["history"]] == [0, 4, 8, 10]
    args = parse("--max-steps 5 --name y --experiments_folder y")
    train(args)
    assert [entry["iteration"] for entry in record(args)["history"]] == [0, 4, 5]


def test_an_epoch_shows_each_graph_once_and_another_order_comes_next(parse):
    args = parse("--batch_size 10")
    session = Session(args, data_of(args), trial_folder(args), CPU)
    seen = []
    for epoch in range(2):
        session.begin_epoch(epoch)
        seen.append(torch.cat(session.batches).tolist())
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(70)) and seen[0] != seen[1]


def test_the_learning_rate_falls_by_gamma_every_lr_decay_epochs(parse):
    args = parse("--lr 0.01 --lr_decay 2 --gamma 0.1 --num_iterations 9 --eval_every 3")
    train(args)  # two batches of 32 an epoch
    rates = [entry["lr"] for entry in record(args)["history"]]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.0001])


def test_steps_are_those_of_adam_with_the_rates_that_were_given(parse):
    args = parse("--use_nvil True --lr 0.01 --enc_weight_decay 0.5 --dec_weight_decay 2.0 --var 1.0")
    session = Session(args, data_of(args), trial_folder(args), CPU)
    decays = {"encoder": 0.5, "decoder": 2.0, "sampler": 0.0}
    names = [name for name, _ in session.model.named_parameters()]
    assert {name.partition(".")[0] for name in names} == set(decays)
    mean, square = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for step in (1, 2):
        before = {name: weight.detach().clone() for name, weight in session.model.named_parameters()}
        session.step()
        for name, weight in session.model.named_parameters():
            slope = weight.grad + decays[name.partition(".")[0]] * before[name]
            mean[name] = 0.9 * mean[name] + 0.1 * slope
            square[name] = 0.999 * square[name] + 0.001 * slope**2
            first, second = mean[name] / (1 - 0.9**step), square[name] / (1 - 0.999**step)
            torch.testing.assert_close(weight.detach(), before[name] - 0.01 * first / (second.sqrt() + 1e-8))


def test_the_reading_of_the_edges_is_chosen_on_validation_graphs_for_all(parse):
    args = parse("--log_edge_metric_train True")
    session = Session(args, data_of(args), trial_folder(args), CPU)
    model, validation = session.model, session.validation
    trees = {
        split: {graph.numpy().tobytes(): edges for graph, edges in zip(layouts.positions, layouts.edges)}
        for split, layouts in (("val", validation), ("test", session.test), ("train", session.train))
    }
    # sure of every edge: one reading is right about validation graphs, the other one about all others
    for right, reading in ((("val",), "as_is"), (("test", "train"), "flipped")):

        def logits(inputs, right=right):
            keys = [graph.numpy().tobytes() for graph in inputs]
            known = [next((split, found[key]) for split, found in trees.items() if key in found) for key in keys]
            return torch.stack([100 * edges if split in right else 100 * (1 - edges) for split, edges in known])

        model.logits = logits
        found = session.figures([])
        save_weights(session.trial, {name: network.state_dict() for name, network in session.networks.items()})
        final = session.final()
        assert found["edge_reading"] == final["edge_reading"] == reading
        assert found["val_precision"] == final["val_precision"] > 0.6
        assert max(found["train_precision"], final["test_precision"]) < 0.1


def test_a_run_is_reproducible_to_the_last_digit(parse):
    records = []
    for name in ("a", "b"):
        args = parse(f"{ADAPTIVE} --seed 7 --experiments_folder {name}")
        train(args)
        records.append(comparable(record(args)))
        Path("results/nri/x/seed7.json").unlink()
    for entry in records:
        entry["config"].pop("experiments_folder")
    assert records[0] == records[1]
    assert records[0]["final"]["test_elbo"] < 0


def test_the_perturbation_size_is_logged(parse):
    args = parse(ADAPTIVE)
    train(args)
    assert [entry["beta"] for entry in record(args)["history"]] == pytest.approx([0, 0.004, 0.006])


@pytest.mark.parametrize("method", ["aimle forward", "nvil", "sst tree"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(parse, method):
    whole = parse(f"{METHODS[method]} --name whole --experiments_folder whole")
    train(whole)
    stopped = f"{METHODS[method]} --name parts --experiments_folder parts"
    args = parse(f"{stopped} --max-steps 4")
    train(args)
    args = parse(f"{stopped} --resume")
    final = train(args)
    assert record(args)["history"] == record(whole)["history"]
    assert final == record(whole)["final"]
    states = [torch.load(trial_folder(a) / "checkpoint.pt", weights_only=True)["model"] for a in (whole, args)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_resuming_with_other_settings_is_refused(parse):
    train(parse("--max-steps 1"))
    with pytest.raises(UsageError, match="lr"):
        train(parse("--temp 0.5 --gamma 0.9 --resume"))


def test_a_trial_of_other_settings_is_not_replaced(parse):
    train(parse("--max-steps 1"))
    with pytest.raises(UsageError, match=r"sst 'tree' .now 'topk'.*--experiments_folder"):
        train(parse("--max-steps 1 --sst topk --name another"))


def test_best_weights_are_kept_and_on_demand_the_last(parse):
    for flag, pick in (("True", lambda elbos: max(elbos)), ("False", lambda elbos: elbos[-1])):
        args = parse(f"--save_best_model {flag} --name {flag} --experiments_folder {flag} --lr 0.3 --num_iterations 12")
        train(args)
        elbos = [entry["val_elbo"] for entry in record(args)["history"]]
        assert elbos[-1] < max(elbos)  # such a learning rate spoils what there was
        assert record(args)["final"]["val_elbo"] == pick(elbos)


def test_edge_metrics_are_logged_as_asked(parse):
    args = parse("--log_edge_metric_train True --log_edge_metric_val False --max-steps 1")
    train(args)
    entry = record(args)["history"][-1]
    assert {"train_acc", "train_precision", "train_recall"} <= entry.keys()
    assert "val_precision" not in entry and "val_elbo" in entry
    assert "val_precision" in record(args)["final"]


def test_evaluation_moves_no_random_number_and_repeats_itself(parse):
    args = parse(ADAPTIVE)
    model, split = build(args), data_of(args)["valid"]
    state = torch.get_rng_state()
    first = measure(model, split, args, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == measure(model, split, args, seed=1) != measure(model, split, args, seed=2)
    assert first["elbo"] == pytest.approx(-first["nll"] - first["kl"])
    assert first["nll"] == pytest.approx(first["mse"] * 5 * 2 / (2 * args.var), rel=1e-4)  # frames, dims


def test_evaluation_does_not_depend_on_how_it_is_cut_up(parse):
    args = parse("--method ste --edge_metric_num_samples 3")
    model, split = build(args), data_of(args)["valid"]
    whole = measure(model, split, args, seed=1)
    args.eval_batch_size, args.eval_edge_metric_bs = 5, 20
    cut_up = measure(model, split, args, seed=1)
    assert cut_up.pop("edge_reading") == whole.pop("edge_reading")
    assert cut_up == pytest.approx(whole, rel=1e-4)


def test_edges_are_measured_with_gumbel_noise_over_many_samples(parse):
    args = parse("--edge_metric_num_samples 500 --eval_edge_metric_bs 7")
    model, split = build(args), data_of(args)["valid"]
    thetas = {split.positions[i].numpy().tobytes(): edges for i, edges in enumerate(split.edges)}
    model.logits = lambda inputs: torch.stack([thetas[graph.numpy().tobytes()] for graph in inputs])
    found = measure(model, split, args, seed=1, bound=False)
    theta = split.edges.repeat_interleave(500, dim=0)
    gumbel = -torch.log(-torch.log(torch.rand(theta.shape, dtype=torch.float64)))
    right = (spanning_tree_edges(theta + gumbel) * theta).sum(1).mean().item() / 4
    assert 0.5 < right < 0.9
    assert found["precision"] == pytest.approx(right, abs=0.02) and found["recall"] == pytest.approx(right, abs=0.02)
    assert found["acc"] == pytest.approx(1 - 2 * 0.4 * (1 - right), abs=0.02)


def test_measuring_trials_returns_an_array_of_one_number_per_trial(parse):
    finals = []
    for seed in (1, 2):
        args = parse(f"{ADAPTIVE} --seed {seed} --max-steps 2")
        train(args)
        finals.append(record(args)["final"])
    found = evaluate_trials(parse(f"{ADAPTIVE} --mode eval --seed 9"), data_of(args), CPU)
    assert list(found) == ["valid", "test"]
    for split, name in (("valid", "val"), ("test", "test")):
        assert list(found[split]) == ["elbo", "acc", "precision", "recall"]
        for key, values in found[split].items():
            assert values.tolist() == pytest.approx([final[f"{name}_{key}"] for final in finals])
            assert values.dtype == ("float64" if key == "elbo" else "float32")
    (path,) = Path("results/nri-eval").glob("*/seed9.json")
    measured = json.loads(path.read_text())
    assert [entry["edge_reading"] for entry in measured["history"]] == [final["edge_reading"] for final in finals]
    assert measured["final"]["test_elbo"] == pytest.approx(sum(final["test_elbo"] for final in finals) / 2)


def test_pictures_lie_beside_the_record(parse):
    args = parse("--max-steps 1")
    train(args)
    for name in ("graphs", "curves"):
        assert Path(f"results/nri/x/seed42_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_adjacency_of_directed_edges_is_symmetric():
    directed = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]])  # receiver 0, sender 2
    expected = torch.tensor([[[0, 0, 1], [0, 0, 0], [1, 0, 0]]], dtype=torch.bool)
    assert torch.equal(adjacency(directed, 3), expected)


def test_trial_folders_are_named_as_published(parse):
    args = parse("--lr 0.0001 --temp 0.1 --seed 3 --experiments_folder ../exp_nri/f")
    assert str(trial_folder(args)) == "experiments/../exp_nri/f/lr0.0001_temp0.1_encwd0.0_decwd0.0_3"
    assert str(trial_folder(parse("--experiment_name e --add_timestamp False"))) == "experiments/trials/e"


def test_a_named_trial_with_its_time_is_found_again_on_resuming(parse):
    named = trial_folder(parse("--experiment_name e"))
    assert named.name.startswith("e_20")
    for time in ("2020-01-01_00-00-00", "2021-01-01_00-00-00"):
        folder = Path("experiments/trials") / f"e_{time}"
        folder.mkdir(parents=True)
        (folder / "checkpoint.pt").touch()
    assert trial_folder(parse("--experiment_name e --resume")).name == "e_2021-01-01_00-00-00"


def test_verbose_logs_each_step(parse, caplog):
    with caplog.at_level(logging.INFO, logger="silent"):
        train(parse("--verbose True --max-steps 2"))
    assert [message.split("\t")[0] for message in caplog.messages if "Loss value" in message] == [
        "Iteration 1",
        "Iteration 2",
    ]
    assert not torch.is_anomaly_enabled()


def test_a_loss_that_is_not_finite_ends_the_run(parse):
    args = parse("--lr 1e30 --num_iterations 4")
    with pytest.raises(FloatingPointError):
        train(args)
    assert record(args)["status"] == "failed"


def test_settings_are_plain(parse):
    json.dumps(config_of(parse()))
