import math
from dataclasses import replace

import pytest
import torch

from aaai23.l2x import config, fast
from aaai23.l2x.data import Annotations, Reviews
from aaai23.l2x.model import Explainer, Predictor, Selector, squared_error
from aaai23.l2x.train import EVALUATION_BATCH, chance_precision, mean_squared_error, selections, subset_precision
from aaai23.methods import METHODS
from imle.layers import RelaxedLayer
from imle.solvers import select_k
from imle.structures import k_subsets
from tests.aaai23.settings import Settings

LENGTHS = (0, 1, 2, 5, 17, 30, 33, 39, 40)


def reviews(lengths=LENGTHS, width=40, words=50):
    tokens = torch.randint(1, words, (len(lengths), width))
    for row, length in enumerate(lengths):
        tokens[row, : width - length] = 0
    return tokens


def embedding(words=50, dimension=12):
    table = torch.randn(words, dimension)
    table[0] = 0
    return table


def plain(selector):
    """The selector as the paper has it, with the same weights."""
    copied = Selector(selector.embedding, selector.conv_in.kernel_size[0]).to(selector.embedding.dtype)
    copied.load_state_dict(selector.state_dict())
    copied.dropout.p = selector.dropout.p
    return copied.train(selector.training)


def assert_same_scores_and_gradients(selector, tokens, seed=1, share=1.0):
    """Of scores and of all weights, where a share of the scores has a gradient."""
    weights = torch.randn(tokens.shape, dtype=selector.embedding.dtype)
    weights *= torch.rand(tokens.shape) < share
    found = []
    for each in (selector, plain(selector)):
        torch.manual_seed(seed)
        scores = each(tokens)
        found.append((scores, torch.autograd.grad((scores * weights).sum(), list(each.parameters()))))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_the_fast_selector_starts_as_the_plain_one():
    starts = []
    for kind in (fast.Selector, Selector):
        torch.manual_seed(3)
        starts.append(kind(torch.zeros(3, 12)).state_dict())
    assert list(starts[0]) == list(starts[1])
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths, width", [(LENGTHS, 40), ((3, 7), 7), ((0, 0), 30), ((1,), 1)])
def test_fast_scores_and_gradients_equal_the_plain_ones(kernel_size, lengths, width):
    selector = fast.Selector(embedding().double(), kernel_size).double()
    assert_same_scores_and_gradients(selector.eval(), reviews(lengths, width))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
def test_scores_without_a_gradient_change_nothing(kernel_size, share, monkeypatch):
    monkeypatch.setattr(fast, "dropout", torch.nn.functional.dropout)
    selector = fast.Selector(embedding().double(), kernel_size).double().train()
    assert_same_scores_and_gradients(selector, reviews(), share=share)


@pytest.mark.parametrize("where", ["conv_in", "conv_local.1", "hidden", "score"])
def test_a_weight_that_is_no_number_is_seen_in_the_gradient(where):
    """As in the plain networks: a gradient that leaves rows out must not leave out what went wrong."""
    for kind in (fast.Selector, Selector):
        selector = kind(embedding()).train()
        selector.get_submodule(where).weight.data[0] = math.nan
        scores = selector(reviews())
        gradients = torch.autograd.grad(scores[5:, -1].sum(), list(selector.parameters()))
        assert any(gradient.isnan().any() for gradient in gradients)


def test_autocast_rounds_gradients_no_more_than_those_of_the_plain_selector():
    selector, tokens, errors = fast.Selector(embedding()).eval(), reviews(), []
    for each in (selector, plain(selector)):
        parameters = list(each.parameters())
        exact = torch.autograd.grad(each(tokens).sum(), parameters)
        with torch.autocast("cpu", torch.bfloat16):
            scores = each(tokens)
        assert scores.dtype == torch.bfloat16
        rounded = torch.autograd.grad(scores.sum(), parameters)
        errors.append([(one - other).norm() / one.norm() for one, other in zip(exact, rounded, strict=True)])
    assert all(ours <= 2 * theirs + 0.01 for ours, theirs in zip(*errors, strict=True))


def test_dropout_of_the_fast_selector_is_that_of_the_plain_one(monkeypatch):
    """In training with p = 0; and with torch's own dropout in its place, also with p as published."""
    selector = fast.Selector(embedding().double()).double().train()
    assert (selector(reviews()) != selector(reviews())).any()
    monkeypatch.setattr(fast, "dropout", torch.nn.functional.dropout)
    assert_same_scores_and_gradients(selector, reviews())
    monkeypatch.undo()
    selector.dropout.p = 0.0
    assert_same_scores_and_gradients(selector, reviews())
    selector.dropout.p = 0.2
    selector.dropout.eval()  # alone
    tokens = reviews()
    torch.testing.assert_close(selector(tokens), selector.eval()(tokens))


def test_away_from_a_cpu_the_selector_waits_for_nothing():
    scores = fast.Selector(embedding()).to("meta")(reviews().to("meta"))  # where a number cannot be looked at
    assert scores.shape == (len(LENGTHS), 40)


def test_packing_keeps_every_word_and_little_padding():
    tokens = reviews()
    packing = fast.pack(tokens, kernel_size=3)
    assert torch.equal(packing.tokens[packing.position], tokens)
    assert len(packing.tokens) == sum(packing.sizes) and len(packing.tokens) % 16 == 0
    assert (packing.tokens != fast.SEPARATOR).sum() <= sum(LENGTHS) + len(LENGTHS) * 13


def test_unknown_words_inside_a_review_are_not_taken_for_padding():
    tokens = reviews((20,))
    tokens[0, 30] = 0
    selector = fast.Selector(embedding().double()).double().eval()
    torch.testing.assert_close(selector(tokens), plain(selector)(tokens))


def test_word_vectors_are_frozen_and_not_in_the_checkpoint():
    selector = Selector(embedding())
    assert "embedding" not in selector.state_dict()
    assert all(parameter.shape != selector.embedding.shape for parameter in selector.parameters())


def explainer(method="aimle", k=4, mask_padding=False, **settings):
    layer = METHODS[method](k_subsets(k), Settings(noise="gumbel", **settings))
    return Explainer(fast.Selector(embedding()), layer, Predictor(12), k, mask_padding)


def test_prediction_is_a_function_of_the_mean_of_the_selected_vectors():
    model = explainer(k=4).eval()
    tokens = reviews((40, 25))
    z = model.select(tokens)
    for row in range(2):
        mean = sum(model.selector.embedding[tokens[row, t]] for t in range(40) if z[row, t]) / 4
        torch.testing.assert_close(model(tokens)[row, 0], model.predictor(mean))


def test_samples_of_one_review_stay_with_it():
    model = explainer(nb_samples=3, theta_noise_temperature=0.0).train()
    model.selector.dropout.p = 0.0
    tokens = reviews()
    predicted = model(tokens)
    assert predicted.shape == (len(LENGTHS), 3)
    torch.testing.assert_close(predicted, model.eval()(tokens).expand(-1, 3))


@pytest.mark.parametrize("method", config.METHODS)
def test_masked_methods_never_select_padding(method):
    model = explainer(method, mask_padding=True, perturbation_size=1.0)
    tokens = reviews((5, 17, 40))
    model.selector.forward = lambda tokens: torch.randn(tokens.shape) + 10 * (tokens == 0)  # padding is best
    for mode in (True, False):
        z = model.train(mode).select(tokens)
        assert z[tokens == 0].abs().max() == 0
        assert (z.sum(dim=1) <= 4 + 1e-3).all()  # the maximum of Concrete samples may have less mass


@pytest.mark.parametrize("method", config.METHODS)
def test_every_method_sends_a_gradient_to_the_selector(method):
    model = explainer(method, perturbation_size=1000.0)
    squared_error(model(reviews()), torch.rand(len(LENGTHS))).backward()
    assert model.selector.score.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("method", config.METHODS)
def test_four_samples_that_are_alike_have_the_gradient_of_one(method):
    tokens, ratings = reviews(), torch.rand(len(LENGTHS))
    found = []
    for samples in (1, 4):
        torch.manual_seed(2)
        model = explainer(method, nb_samples=samples, perturbation_size=1000.0, target_noise_temperature=0.0)
        model.selector.dropout.p = 0.0
        if isinstance(model.layer, RelaxedLayer):
            model.layer.relax = lambda theta, temperature, generator: 4 * (theta / temperature).softmax(dim=1)
        else:
            model.layer.estimator = replace(model.layer.estimator, noise_distribution=None)
        squared_error(model(tokens), ratings).backward()
        found.append([each.grad for each in model.parameters()])
    assert model.selector.score.weight.grad.abs().sum() > 0
    torch.testing.assert_close(*found)


def test_loss_is_the_mean_over_samples_and_reviews():
    predicted, ratings = torch.rand(5, 3), torch.rand(5)
    expected = sum((predicted[b, s] - ratings[b]) ** 2 for b in range(5) for s in range(3)) / 15
    torch.testing.assert_close(squared_error(predicted, ratings), expected)


def test_subset_precision_counts_selected_words_inside_the_ranges():
    tokens = torch.tensor([[0, 0, 3, 4, 5], [6, 7, 8, 9, 3]])
    relevant = torch.tensor([[0, 0, 1, 0, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
    selected = torch.tensor([[1, 0, 1, 1, 0], [1, 0, 0, 1, 1]], dtype=torch.bool)
    # review 0: 2 words selected (one position is padding), of which 1 hit, counted as 3; review 1: 3 words, 1 hit
    assert subset_precision(selected, Annotations(tokens, relevant), k=3) == pytest.approx(100 * 2 / 6)
    # counted as they are, where k is smaller
    assert subset_precision(selected, Annotations(tokens, relevant), k=1) == pytest.approx(100 * 2 / 5)
    # an unknown word, which is 0 too, is no hit though a range covers it
    relevant[0, 0] = True
    assert subset_precision(selected, Annotations(tokens, relevant), k=3) == pytest.approx(100 * 2 / 6)


def test_chance_precision_is_the_mean_of_random_selections():
    tokens = reviews((5, 17, 40, 3))
    annotations = Annotations(tokens, (torch.rand(tokens.shape) < 0.3) & (tokens != 0))
    trials = []
    for _ in range(2000):
        selected = select_k(torch.rand(tokens.shape), 4, mask=tokens != 0) > 0
        trials.append(subset_precision(selected, annotations, k=4))
    error = torch.tensor(trials).std().item() / len(trials) ** 0.5
    assert chance_precision(annotations, 4) == pytest.approx(sum(trials) / len(trials), abs=4 * error)


def test_dropout_keeps_the_mean_and_its_probability():
    y = fast.dropout(torch.ones(1001, 1003), 0.2, training=True)
    share = (y == 0).double().mean().item()
    assert share == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / y.numel()) ** 0.5)
    assert y[y != 0].unique().tolist() == pytest.approx([1.25], rel=1e-5)
    assert torch.equal(fast.dropout(y, 0.2, training=False), y)
    assert fast.dropout(y.bfloat16(), 0.2, training=True).dtype == torch.bfloat16
    neighbours = (y[:, 1:] == 0).double() - share, (y[:, :-1] == 0).double() - share
    assert abs((neighbours[0] * neighbours[1]).mean().item()) < 4 * 0.16 / y.numel() ** 0.5


def test_layers_have_the_published_sizes():
    model = Explainer(Selector(torch.zeros(3, 200)), torch.nn.Identity(), Predictor(200), select_k=1)
    shapes = [tuple(parameter.shape) for parameter in model.selector.parameters()]
    convolutions = [(100, 200, 3), (100, 100, 3), (100, 100, 3)]
    # dense on the maximum, dense on both parts at every position, the score
    dense = [(100, 100), (100, 200), (1, 100)]
    assert shapes == [shape for weight in convolutions + dense for shape in (weight, weight[:1])]
    assert [tuple(parameter.shape) for parameter in model.predictor.parameters()] == [
        *[(250, 200), (250,)],  # H
        *[(1, 250), (1,)],
    ]


def test_all_weights_start_xavier_uniform_with_the_gain_of_relu_and_all_biases_at_zero():
    model = Explainer(Selector(torch.zeros(3, 200)), torch.nn.Identity(), Predictor(200), select_k=1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
            continue
        fan_in, fan_out = parameter[0].numel(), parameter[:, 0].numel()
        bound = 2**0.5 * (6 / (fan_in + fan_out)) ** 0.5
        assert 0.9 * bound < parameter.abs().max() <= bound, name
        deviation = (4 / 45 / parameter.numel()) ** 0.5  # of the mean square of numbers uniform in [-1, 1]
        assert (parameter / bound).square().mean().item() == pytest.approx(1 / 3, abs=4.5 * deviation), name


def test_a_fifth_of_the_features_is_dropped_in_training_and_the_rest_scaled_up():
    """At the published place: between the features of both parts, 200 numbers a position, and the last layers."""
    selector = Selector(embedding()).train()
    (dropout,) = [module for module in selector.modules() if isinstance(module, torch.nn.Dropout)]
    seen = []
    dropout.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    selector(torch.randint(1, 50, (8, 40)))
    ((features, kept),) = seen
    assert features.shape == kept.shape == (8, 40, 200)
    alive = features != 0
    share = (kept[alive] == 0).double().mean().item()
    assert share == pytest.approx(0.2, abs=4.5 * (0.16 / alive.sum().item()) ** 0.5)
    torch.testing.assert_close(kept[kept != 0], features[kept != 0] / 0.8, rtol=1e-4, atol=0)


def test_a_rating_is_the_sigmoid_of_a_dense_layer_on_a_dense_layer_with_relu():
    predictor = Predictor(5, 4).double()
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter)
    weight, bias, last, last_bias = (parameter.tolist() for parameter in predictor.parameters())
    for x in torch.randn(6, 5, dtype=torch.float64):
        hidden = [max(sum(w * v for w, v in zip(row, x.tolist())) + b, 0.0) for row, b in zip(weight, bias)]
        total = sum(w * h for w, h in zip(last[0], hidden)) + last_bias[0]
        assert predictor(x).item() == pytest.approx(1 / (1 + math.exp(-total)), rel=1e-9)


def by_hand(model, tokens, k):
    """The chosen positions and the rating of one review, noise-free: the best-scored words, their mean, a rating."""
    selector = plain(model.selector).eval()
    scores = selector(tokens[None])[0].tolist()
    chosen = sorted(sorted(range(len(scores)), key=lambda t: -scores[t])[:k])
    mean = sum(model.selector.embedding[tokens[t]] for t in chosen) / k
    return chosen, model.predictor(mean).item()


@pytest.mark.parametrize("left_in_training_mode", [False, True])
def test_measured_figures_are_those_of_a_plain_loop(left_in_training_mode):
    """More reviews than one batch holds; noise and dropout off whatever went before."""
    model = explainer(theta_noise_temperature=3.0).double()
    tokens = torch.randint(0, 50, (EVALUATION_BATCH + 3, 12))
    ratings = torch.rand(len(tokens), dtype=torch.float64)
    with torch.no_grad():
        expected = [by_hand(model, review, 4) for review in tokens]
    errors = [(predicted - rating.item()) ** 2 for (_, predicted), rating in zip(expected, ratings)]
    model.train(left_in_training_mode)
    assert mean_squared_error(model, Reviews(tokens, ratings)) == pytest.approx(100 * sum(errors) / len(errors))
    model.train(left_in_training_mode)
    selected = selections(model, tokens)
    assert selected.dtype == torch.bool
    assert [row.nonzero().flatten().tolist() for row in selected] == [chosen for chosen, _ in expected]


def test_chance_precision_of_a_review_without_known_words_counts_as_misses():
    """A review of unknown words alone has padding only, so no word that could be hit, and k that are missed."""
    tokens = torch.tensor([[0, 0, 0, 0], [0, 3, 4, 5]])
    relevant = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0]], dtype=torch.bool)
    # of the second review two of three words: one of them, so 2/3 of a hit
    assert chance_precision(Annotations(tokens, relevant), 2) == pytest.approx(100 * (0 + 2 / 3) / (2 + 2))
    assert chance_precision(Annotations(tokens[:1], relevant[:1]), 2) == 0.0


def test_dropout_counts_the_last_of_its_sixteen_bits():
    """The largest probability below 1 that it can have keeps one number of 65536, as 65536."""
    kept = fast.dropout(torch.ones(2**21), 1 - 2**-16, training=True)
    kept = kept[kept != 0]
    assert abs(len(kept) - 32) < 4.5 * 32**0.5
    assert kept.unique().tolist() == [2**16]
