import pytest
import torch

from aaai23.l2x.data import Annotations
from aaai23.l2x.model import Dropout, Explainer, Predictor, Selector, pack, squared_error
from aaai23.l2x.train import chance_precision, subset_precision
from aaai23.methods import SUBSET_METHODS, Options
from imle.solvers import select_k
from tests.plain_l2x import plain_scores

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


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
def test_packed_scores_and_gradients_equal_those_of_the_padded_computation(kernel_size):
    selector = Selector(embedding().double(), kernel_size).double().eval()
    tokens = reviews()
    weights = torch.randn(tokens.shape, dtype=torch.float64)
    gradients = []
    for scores in (selector(tokens), plain_scores(selector, tokens)):
        selector.zero_grad()
        (scores * weights).sum().backward()
        gradients.append((scores.detach(), [p.grad.clone() for p in selector.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)


def test_the_padded_path_of_accelerators_equals_the_packed_one():
    selector = Selector(embedding(), 3)
    tokens = reviews()
    packed, padded = selector._packed_features(tokens), selector._padded_features(tokens)
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)


def test_packing_keeps_every_word_and_little_padding():
    tokens = reviews()
    packing = pack(tokens, kernel_size=3)
    assert torch.equal(packing.tokens[packing.position], tokens)
    assert packing.real.sum() <= sum(LENGTHS) + len(LENGTHS) * 13
    assert not packing.tokens[~packing.real].any()


def test_unknown_words_inside_a_review_are_not_taken_for_padding():
    tokens = reviews((20,))
    tokens[0, 30] = 0
    selector = Selector(embedding(), 3).eval()
    torch.testing.assert_close(selector(tokens), plain_scores(selector, tokens), rtol=1e-4, atol=1e-5)


def test_initial_weights_are_xavier_uniform_with_the_gain_of_relu():
    linear = Predictor(200, 250).hidden
    bound = (2 * 6 / (200 + 250)) ** 0.5
    assert linear.weight.abs().max() <= bound
    assert linear.weight.var().item() == pytest.approx(bound**2 / 3, rel=0.05)
    assert not linear.bias.any()


def test_word_vectors_are_frozen_and_not_in_the_checkpoint():
    selector = Selector(embedding())
    assert "embedding" not in selector.state_dict()
    assert all(parameter.shape != selector.embedding.shape for parameter in selector.parameters())


def explainer(method="aimle", k=4, mask_padding=False, **options):
    def solver(theta, mask=None):
        return select_k(theta, k, mask)

    layer = SUBSET_METHODS[method](solver, Options(noise="gumbel", noise_k=k, subset_size=k, **options))
    return Explainer(embedding(), layer, k, mask_padding=mask_padding)


def test_prediction_is_a_function_of_the_mean_of_the_selected_vectors():
    model = explainer(k=4).eval()
    tokens = reviews((40, 25))
    z = model.select(tokens)
    for row in range(2):
        mean = sum(model.selector.embedding[tokens[row, t]] for t in range(40) if z[row, t]) / 4
        torch.testing.assert_close(model(tokens)[row, 0], model.predictor(mean))


def test_samples_of_one_review_stay_with_it():
    model = explainer(samples=3, theta_temperature=0.0).train()
    model.selector.dropout.p = 0.0
    tokens = reviews()
    predicted = model(tokens)
    assert predicted.shape == (len(LENGTHS), 3)
    torch.testing.assert_close(predicted, model.eval()(tokens).expand(-1, 3))


@pytest.mark.parametrize("method", SUBSET_METHODS)
def test_masked_methods_never_select_padding(method):
    model = explainer(method, mask_padding=True, perturbation_size=1.0)
    tokens = reviews((5, 17, 40))
    for mode in (True, False):
        z = model.train(mode).select(tokens)
        assert z[tokens == 0].abs().max() == 0
        assert (z.sum(dim=1) <= 4 + 1e-3).all()  # the maximum of Concrete samples may have less mass


@pytest.mark.parametrize("method", SUBSET_METHODS)
def test_every_method_sends_a_gradient_to_the_selector(method):
    model = explainer(method, perturbation_size=1000.0)
    squared_error(model(reviews()), torch.rand(len(LENGTHS))).backward()
    assert model.selector.score.weight.grad.abs().sum() > 0


def test_loss_sums_over_samples_and_averages_over_reviews():
    predicted, ratings = torch.rand(5, 3), torch.rand(5)
    expected = sum((predicted[b, s] - ratings[b]) ** 2 for b in range(5) for s in range(3)) / 5
    torch.testing.assert_close(squared_error(predicted, ratings), expected)


def test_subset_precision_counts_selected_words_inside_the_ranges():
    tokens = torch.tensor([[0, 0, 3, 4, 5], [6, 7, 8, 9, 3]])
    relevant = torch.tensor([[0, 0, 1, 0, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
    selected = torch.tensor([[1, 0, 1, 1, 0], [1, 0, 0, 1, 1]], dtype=torch.bool)
    # review 0: 2 words selected (one position is padding), of which 1 hit, counted as 3; review 1: 3 words, 1 hit
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
    dropout = Dropout(0.2)
    y = dropout(torch.ones(1001, 1003))
    share = (y == 0).double().mean().item()
    assert share == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / y.numel()) ** 0.5)
    assert y[y != 0].unique().tolist() == pytest.approx([1.25], rel=1e-5)
    assert torch.equal(dropout.eval()(y), y)
    neighbours = (y[:, 1:] == 0).double() - share, (y[:, :-1] == 0).double() - share
    assert abs((neighbours[0] * neighbours[1]).mean().item()) < 4 * 0.16 / y.numel() ** 0.5
