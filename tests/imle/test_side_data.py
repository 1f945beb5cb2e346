"""What reaches a solver beside theta, and instances that it leaves out."""

import copy
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
import torch

from imle.aimle import aimle
from imle.fenchel_young import FenchelYoungLoss
from imle.imle import imle
from imle.layers import MAPLayer
from imle.noise import GumbelNoiseDistribution
from imle.perturbed import perturbed
from imle.sfe import score_function_loss, sfe
from imle.solver import shared
from imle.solvers import select_k
from imle.spo_plus import SPOPlusLoss
from imle.ste import ste
from imle.target import AdaptiveTargetDistribution

B, S, N = 3, 2, 5


class Problem:
    """An instance as real solvers take it: an object."""

    def __init__(self, name):
        self.name = name


class Recorder:
    """A solver that keeps what it is given."""

    def __init__(self):
        self.calls = []

    def __call__(self, theta, *args, **kwargs):
        self.calls.append((len(theta), args, kwargs))
        return select_k(theta, 2)


def given(argument, **options):
    """Return what the solver of one forward and one backward pass sees of an argument, once for each call."""
    recorder = Recorder()
    theta = torch.randn(B, N, requires_grad=True)
    aimle(recorder, nb_samples=S, noise_distribution=GumbelNoiseDistribution(), **options)(
        theta, argument
    ).sum().backward()
    return [args[0] for _, args, _ in recorder.calls]


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_sequence_of_one_object_per_instance_is_repeated_for_the_samples_in_the_order_of_the_rows(kind):
    problems = kind(Problem(name) for name in "abc")
    for seen in given(problems):
        assert type(seen) is kind
        assert [problem.name for problem in seen] == ["a", "a", "b", "b", "c", "c"]
        assert seen[0] is problems[0]


class Graphs(NamedTuple):
    weights: torch.Tensor
    tolerances: torch.Tensor
    name: str


@pytest.mark.parametrize("kind", [Graphs, lambda *items: OrderedDict(zip(Graphs._fields, items))])
def test_named_tuples_and_ordered_dicts_are_repeated_item_by_item(kind):
    weights, tolerances = torch.arange(3.0, requires_grad=True), torch.zeros(2)  # B is 3, and so many items there are
    argument = kind(weights, tolerances, "few")
    for seen in given(argument):
        assert type(seen) is type(argument)
        fields = seen if kind is Graphs else list(seen.values())
        assert fields[0].tolist() == [0, 0, 1, 1, 2, 2] and not fields[0].requires_grad
        assert fields[1].tolist() == [0, 0] and fields[1] is not tolerances and fields[2] == "few"


def test_a_dict_of_columns_is_repeated_column_by_column():
    columns = {"names": ["x", "y", "z"], "weights": torch.arange(3), "limits": np.arange(3), "tolerance": 0.1}
    for seen in given(columns):
        assert seen["names"] == ["x", "x", "y", "y", "z", "z"]
        assert seen["weights"].tolist() == seen["limits"].tolist() == [0, 0, 1, 1, 2, 2]
        assert seen["tolerance"] == 0.1


def test_tensors_within_a_tuple_of_another_length_are_repeated():
    for first, second in given((torch.arange(3), torch.arange(4))):
        assert (first.tolist(), second.tolist()) == ([0, 0, 1, 1, 2, 2], [0, 1, 2, 3])


def test_what_is_shared_is_passed_as_it_is():
    assert all(seen.tolist() == [0, 1, 2] for seen in given(shared(torch.arange(3))))
    assert all(seen["a"].tolist() == [0, 1, 2] for seen in given({"a": shared(torch.arange(3))}))
    problems = [Problem(name) for name in "abc"]
    assert all(seen is problems for seen in given(shared(problems)))


def test_a_cache_reaches_the_solver_as_the_very_dict():
    cache = {}

    @ste
    def solver(theta, cache):
        cache["calls"] = cache.get("calls", 0) + 1
        return select_k(theta, 2)

    solver(torch.randn(B, N), cache), solver(torch.randn(B, N), cache)
    assert cache == {"calls": 2}


def test_a_solver_that_writes_on_its_arguments_leaves_the_callers_alone():
    inside = torch.ones(4)
    columns = {"nested": [inside, np.ones(4)]}

    @ste(nb_samples=S)
    def solver(theta, columns):
        columns["nested"][0].zero_()
        columns["nested"][1][:] = 0
        return select_k(theta, 2)

    solver(torch.randn(B, N), columns)
    assert inside.sum() == 4 and columns["nested"][1].sum() == 4


def test_one_object_per_instance_reaches_it_under_every_estimator_and_through_a_layer():
    problems = [Problem(name) for name in "abc"]
    for estimator in (aimle, imle, ste, sfe):
        recorder = Recorder()
        layer = MAPLayer(recorder, estimator(nb_samples=S))
        layer(torch.randn(B, N), problems=problems)
        layer.eval()(torch.randn(B, N), problems=problems)
        (_, _, sampled), (_, _, solved) = recorder.calls
        assert [problem.name for problem in sampled["problems"]] == ["a", "a", "b", "b", "c", "c"]
        assert [problem.name for problem in solved["problems"]] == ["a", "b", "c"]


class LeavesOut:
    """A solver that cannot solve some rows: of its first call, or of its later ones."""

    may_skip = True

    def __init__(self, rows, first_call=True):
        self.rows, self.first_call, self.calls = rows, first_call, 0

    def __call__(self, theta):
        z = select_k(theta, 2)
        if (self.calls == 0) is self.first_call:
            z[self.rows] = torch.nan
        self.calls += 1
        return z


@pytest.mark.parametrize("first_call", [True, False])
@pytest.mark.parametrize("central", [True, False])
def test_an_instance_that_is_left_out_has_no_gradient_and_no_part_in_the_state(first_call, central):
    torch.manual_seed(0)
    theta, c = torch.randn(4, 6), torch.randn(4, 6)
    kept = torch.tensor([True, False, True, True])

    def gradient(solver, theta, c):
        target = AdaptiveTargetDistribution(initial_beta=4.0, target_norm=3.0)
        theta = theta.clone().requires_grad_()
        z = aimle(solver, target_distribution=target, symmetric_perturbation=central)(theta)
        (z * c).sum().backward()
        return z, theta.grad, target

    z, g, target = gradient(LeavesOut([1], first_call), theta, c)
    if first_call:
        assert z[1].eq(0).all()
        _, expected, alone = gradient(lambda theta: select_k(theta, 2), theta[kept], c[kept])
        torch.testing.assert_close(g[kept], expected)
        assert target.beta == alone.beta
        torch.testing.assert_close(target.grad_norm, alone.grad_norm)
    assert g[1].eq(0).all() and g[kept].ne(0).any() and g.isfinite().all()


@pytest.mark.parametrize("central", [True, False])
def test_instances_are_left_out_on_an_accelerator_too(no_waiting, central):
    gradients = []
    for accelerator in (False, True):
        if accelerator:
            no_waiting()
        torch.manual_seed(0)
        target, theta = AdaptiveTargetDistribution(initial_beta=4.0), torch.randn(4, 6, requires_grad=True)
        layer = aimle(LeavesOut([1]), target_distribution=target, symmetric_perturbation=central)
        (layer(theta) * torch.randn(4, 6)).sum().backward()
        gradients.append((theta.grad, target.beta, target.grad_norm))
    assert gradients[0][0].any() and not gradients[0][0][1].any()
    torch.testing.assert_close(gradients[0], gradients[1])


def test_losses_give_no_gradient_to_what_is_left_out():
    theta, c = torch.randn(4, 6), torch.randn(4, 6)
    z_true, kept = select_k(c, 2), [0, 1, 3]

    def score_function(solver, theta):
        z, log_prob = sfe(solver, nb_samples=3)(theta)
        losses = (z - 1).square().sum(dim=1)
        return score_function_loss(losses, log_prob, nb_samples=3).unflatten(0, (-1, 3)).sum(dim=1)

    losses = {
        "SPO+": lambda solver, theta: SPOPlusLoss(solver)(theta, c),
        "SPO+, z_true": lambda solver, theta: SPOPlusLoss(solver)(theta, c, z_true=z_true),
        "Fenchel-Young": lambda solver, theta: FenchelYoungLoss(solver, perturbed(nb_samples=3))(theta, z_true),
        "score function": score_function,
    }
    for name, loss in losses.items():
        for first_call in (True, False) if name == "SPO+" else (True,):
            gradients = []
            rows = slice(6, 7) if name in ("Fenchel-Young", "score function") else 2  # one of three samples
            for solver in (LeavesOut(rows, first_call), lambda theta: select_k(theta, 2)):
                torch.manual_seed(1)
                leaf = theta.clone().requires_grad_()
                value = loss(solver, leaf)
                value.sum().backward()
                gradients.append(leaf.grad)
            assert not gradients[0][2].any() and gradients[1][2].any(), name
            assert torch.equal(gradients[0][kept], gradients[1][kept]), name


@pytest.mark.parametrize("transformed", [torch.func.grad, lambda loss: torch.func.vmap(torch.func.grad(loss))])
def test_torch_func_refuses_to_leave_instances_out_where_it_solves_again(transformed):
    class Moved(LeavesOut):
        def __call__(self, theta, offset):
            return super().__call__(theta + offset)

    def loss(theta, offset):
        return aimle(Moved([1]), target_distribution=AdaptiveTargetDistribution())(theta, offset).square().sum()

    shape = (4, 6) if transformed is torch.func.grad else (1, 4, 6)
    with pytest.raises(RuntimeError, match="cannot leave out instances"):
        transformed(loss)(torch.randn(shape), torch.randn(shape))


def test_straight_through_leaves_instances_out_under_torch_func():
    class Moved(LeavesOut):
        def __call__(self, theta, offset):
            return super().__call__(theta + offset)

    g = torch.func.grad(lambda theta, offset: ste(Moved([1]))(theta, offset).sum())(torch.randn(4, 6), torch.ones(4, 6))
    assert torch.equal(g, torch.ones(4, 6).index_fill(0, torch.tensor(1), 0.0))


def test_a_batch_that_is_left_out_as_a_whole_leaves_the_state_alone():
    target = AdaptiveTargetDistribution()
    before = copy.deepcopy(target.state_dict())
    theta = torch.randn(4, 6, requires_grad=True)
    aimle(LeavesOut(slice(None)), target_distribution=target)(theta).sum().backward()
    assert theta.grad.eq(0).all()
    assert target.state_dict() == before


def test_straight_through_gives_no_gradient_to_what_is_left_out():
    theta = torch.randn(4, 6, requires_grad=True)
    ste(LeavesOut([2]))(theta).sum().backward()
    assert theta.grad[2].eq(0).all() and theta.grad[[0, 1, 3]].eq(1).all()


def test_a_solver_that_does_not_say_that_it_skips_is_refused_an_answer_of_nan():
    class Silent(LeavesOut):
        may_skip = False

    with pytest.raises(FloatingPointError, match="row 1 of its batch"):
        ste(Silent([1]))(torch.randn(4, 6))


def test_an_option_that_is_misspelt_is_answered_with_the_near_name():
    with pytest.raises(TypeError, match=r"aimle has no option n_samples: did you mean nb_samples\?"):
        aimle(n_samples=2)
    with pytest.raises(TypeError, match=r"ste has no option zzz: its options are .*nb_samples"):
        ste(zzz=2)


def test_a_generator_that_is_none_is_told_what_one_is():
    with pytest.raises(TypeError, match=r"torch.Generator\(\).manual_seed\(1\), not 1"):
        imle(generator=1)


def test_a_layer_prints_its_solver_and_its_estimator_with_the_options_that_were_given():
    text = repr(MAPLayer(select_k, aimle(target_distribution=None, nb_samples=7, symmetric_perturbation=True)))
    assert "solver=select_k, estimator=AIMLE(" in text and "nb_samples=7, symmetric_perturbation=True)" in text
    assert "AdaptiveTargetDistribution(" in text and "generator" not in text
    text = repr(MAPLayer(select_k, aimle()))  # what a bare call has chosen is shown, too
    assert "noise_distribution=GumbelNoiseDistribution(" in text and "AutoTargetDistribution(" in text
