"""Bounds and edge metrics against plain loops and scikit-learn."""

import math

import pytest
import torch
from sklearn import metrics as sk

from aaai23.errors import UsageError
from aaai23.nri.metrics import edge_metrics, kl_gumbel, nll_gaussian


def test_nll_is_the_loop_over_squared_errors():
    predictions, targets, variance = torch.randn(3, 4, 5, 2), torch.randn(3, 4, 5, 2), 5e-5
    for sample, got in enumerate(nll_gaussian(predictions, targets, variance).tolist()):
        total = 0.0
        for vertex in range(4):
            for frame in range(5):
                for axis in range(2):
                    error = (
                        predictions[sample, vertex, frame, axis].item() - targets[sample, vertex, frame, axis].item()
                    )
                    total += error**2 / (2 * variance)
        assert got == pytest.approx(total / 4, rel=1e-5)


def test_nll_is_the_gaussian_density_up_to_a_constant():
    predictions, variance = torch.randn(2, 3, 4, 2, dtype=torch.float64), 0.3
    near, far = torch.randn(2, 2, 3, 4, 2, dtype=torch.float64)
    density = torch.distributions.Normal(predictions, math.sqrt(variance))
    expected = (density.log_prob(near) - density.log_prob(far)).sum((1, 2, 3)) / 3
    got = nll_gaussian(predictions, far, variance) - nll_gaussian(predictions, near, variance)
    torch.testing.assert_close(got, expected)


def test_kl_is_the_loop_over_directed_edges():
    logits = torch.randn(3, 12)
    for row, got in zip(logits.tolist(), kl_gumbel(logits).tolist(), strict=True):
        assert got == pytest.approx(sum(x + math.exp(-x) - 1 for x in row) / 4, rel=1e-5)


@pytest.mark.parametrize("location", [-1.0, 0.5, 2.0])
def test_kl_is_the_integral_over_gumbel_densities(location):
    x = torch.linspace(-8, 40, 200_001, dtype=torch.float64)
    log_p = -(x - location) - torch.exp(-(x - location))
    log_q = -x - torch.exp(-x)
    integral = torch.trapezoid(log_p.exp() * (log_p - log_q), x)
    assert kl_gumbel(torch.full((1, 2), location, dtype=torch.float64)).item() == pytest.approx(
        integral.item(), rel=1e-6
    )


def test_kl_is_zero_at_the_prior_and_positive_elsewhere():
    assert kl_gumbel(torch.zeros(2, 6)).tolist() == [0, 0]
    assert (kl_gumbel(torch.randn(50, 6)) > 0).all()


def test_edge_metrics_agree_with_scikit_learn():
    true = torch.rand(20, 12) < 0.3
    inferred = true ^ (torch.rand(20, 12) < 0.2)
    got = edge_metrics(inferred.float(), true.float())
    assert not got.flipped
    for b in range(20):
        assert got.accuracy[b].item() == pytest.approx(sk.accuracy_score(true[b], inferred[b]))
        assert got.precision[b].item() == pytest.approx(sk.precision_score(true[b], inferred[b], zero_division=0))
        assert got.recall[b].item() == pytest.approx(sk.recall_score(true[b], inferred[b], zero_division=0))


def test_swapped_edge_types_score_the_same():
    true = torch.rand(30, 20) < 0.2
    inferred = true ^ (torch.rand(30, 20) < 0.1)
    as_is, swapped = edge_metrics(inferred, true), edge_metrics(~inferred, true)
    assert (as_is.flipped, swapped.flipped) == (False, True)
    assert as_is.means() == swapped.means()


def test_one_reading_is_chosen_for_all_samples_by_mean_precision():
    true = torch.tensor([[1, 1, 0, 0]] * 3)
    inferred = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]])
    got = edge_metrics(inferred, true)
    assert not got.flipped
    assert got.precision.tolist() == [1, 1, 0]
    assert got.means() == pytest.approx({"acc": 2 / 3, "precision": 2 / 3, "recall": 2 / 3})


def test_a_reading_that_is_given_is_taken_though_the_other_one_scores_better():
    true = torch.tensor([[1, 1, 0, 0]])
    wrong = edge_metrics(1 - true, true, reading="as_is")
    assert wrong.means() == {"acc": 0, "precision": 0, "recall": 0} and wrong.reading == "as_is"
    right = edge_metrics(1 - true, true)
    assert right.means() == {"acc": 1, "precision": 1, "recall": 1} and right.reading == "flipped"
    assert edge_metrics(true, true, reading="flipped").means() == wrong.means()


def test_nothing_inferred_and_nothing_to_infer_count_as_zero():
    none = torch.zeros(1, 6)
    empty_truth = edge_metrics(torch.tensor([[1, 0, 0, 0, 0, 0]]), none)
    assert empty_truth.recall.tolist() == empty_truth.precision.tolist() == [0]
    both = torch.cat([none, torch.eye(6)[:1]])
    nothing_inferred = edge_metrics(both, torch.eye(6)[:1].expand(2, -1))
    assert nothing_inferred.precision.tolist() == nothing_inferred.recall.tolist() == [0, 1]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="7 logits"):
        kl_gumbel(torch.zeros(1, 7))
    with pytest.raises(UsageError, match="differ in shape"):
        nll_gaussian(torch.zeros(1, 2, 3, 2), torch.zeros(1, 2, 4, 2), 1.0)
    with pytest.raises(UsageError, match="differ in shape"):
        edge_metrics(torch.zeros(1, 6), torch.zeros(1, 12))
