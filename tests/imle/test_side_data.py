"""What reaches a solver beside theta, and instances that it leaves out."""

import functools
import re
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given as given_by
from hypothesis import strategies as st

from imle.aimle import aimle
from imle.fenchel_young import FenchelYoungLoss
from imle.imle import imle
from imle.layers import MAPLayer
from imle.noise import GumbelNoiseDistribution
from imle.perturbed import perturbed
from imle.sfe import score_function_loss, sfe
from imle.solver import Shared, assign, shared
from imle.solvers import batched, binary_programme, knapsack, select_k
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
    weights, tolerances = torch.arange(3.0, requires_grad=True), torch.zeros(3)  # B is 3, and so many items there are
    argument = kind(weights, shared(tolerances), "few")
    for seen in given(argument):
        assert type(seen) is type(argument)
        fields = seen if kind is Graphs else list(seen.values())
        assert fields[0].tolist() == [0, 0, 1, 1, 2, 2] and not fields[0].requires_grad
        assert fields[1].tolist() == [0, 0, 0] and fields[1] is not tolerances and fields[2] == "few"


def test_a_dict_of_columns_is_repeated_column_by_column():
    columns = {"names": ["x", "y", "z"], "weights": torch.arange(3), "limits": np.arange(3), "tolerance": 0.1}
    for seen in given(columns):
        assert seen["names"] == ["x", "x", "y", "y", "z", "z"]
        assert seen["weights"].tolist() == seen["limits"].tolist() == [0, 0, 1, 1, 2, 2]
        assert seen["tolerance"] == 0.1


def test_tensors_within_a_tuple_of_another_length_are_repeated():
    for first, second in given((torch.arange(3), shared(torch.arange(4)))):
        assert (first.tolist(), second.tolist()) == ([0, 0, 1, 1, 2, 2], [0, 1, 2, 3])


def test_what_is_shared_is_passed_as_it_is():
    assert all(seen.tolist() == [0, 1, 2] for seen in given(shared(torch.arange(3))))
    assert all(seen["a"].tolist() == [0, 1, 2] for seen in given({"a": shared(torch.arange(3))}))
    problems = [Problem(name) for name in "abc"]
    assert all(seen is problems for seen in given(shared(problems)))


# Lengths: what belongs to no instance of the batch says so, or is an error

MISFITS = {  # at B = 3: where it is, its length
    "a list": ([1, 2], "", 2),
    "objects": ([Problem("a"), Problem("b")], "", 2),
    "words": (("x", "y", "z", "u"), "", 4),
    "a tensor": (torch.zeros(2, 4), "", 2),
    "a parameter": (torch.nn.Parameter(torch.zeros(7, 2)), "", 7),
    "no numbers, but two rows of them": (torch.zeros(2, 0), "", 2),
    "an array": (np.zeros((4, 3)), "", 4),
    "instances of another batch, of different sizes": ([np.zeros(5), np.zeros(4)], "", 2),
    "dicts of another batch": ([{"size": 1}, {"size": 2}], "", 2),
    "a mask in a dict": ({"k": 2, "mask": torch.ones(N)}, "['mask']", 5),
    "in a named tuple": (Graphs(torch.zeros(3), torch.zeros(2), "few"), ".tolerances", 2),
    "beside what has an item for each": ((torch.zeros(3), {"a": [[1, 2]]}), "[1]['a'][0]", 2),
    "in a list of one": ([torch.zeros(2)], "[0]", 2),
}


@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("lifted", [False, True])
def test_what_has_another_length_than_the_batch_is_an_error_that_names_it(name, lifted):
    argument, at, length = MISFITS[name]
    solver = ste(lambda theta, *_, **__: select_k(theta, 2))
    if lifted:
        solver = batched(lambda theta, *_, **__: theta)
    says = "has length {}, the batch 3: .*imle.solver.shared".format
    where = "value" if lifted else "args[1]"
    with pytest.raises(ValueError, match=re.escape(f"argument {where}{at} ") + says(length)):
        solver(torch.randn(B, N), 1, argument)
    where = "value" if lifted else "edges"
    with pytest.raises(ValueError, match=re.escape(f"argument {where}{at} ") + says(length)):
        solver(torch.randn(B, N), edges=argument)
    solver(torch.randn(B, N), shared(argument))
    solver(torch.randn(length, N), argument) if not at else None


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    "argument",
    [4, "word", None, np.float64(2), torch.tensor(2.0), np.array(2.0), [], (), {}, torch.zeros(0), torch.zeros(0, 4),
     {"tolerance": 0.1, "name": "exact", "limits": {}}, {1, 2, 3, 4}, range(4), Problem("a"), torch.Size([4, 4])],
    ids=lambda argument: type(argument).__name__,
)  # fmt: skip
def test_what_has_no_length_is_one_for_all(batch, argument):
    def solver(theta, given):
        assert given is argument or torch.equal(torch.as_tensor(given), torch.as_tensor(argument))
        return theta

    ste(solver)(torch.randn(batch, N), argument)
    ste(batched(solver, instance="torch"))(torch.randn(batch, N), argument)


@pytest.mark.parametrize(
    "argument", [[7], (7,), torch.full((1, 2), 7.0), np.full(1, 7)], ids=lambda it: type(it).__name__
)
def test_what_has_length_one_is_one_for_all_and_in_a_batch_of_one_the_instances(argument):
    assert all(len(seen) == 1 for seen in given(argument))
    lengths = []

    @ste(nb_samples=S, noise_distribution=GumbelNoiseDistribution())
    def solver(theta, argument):
        lengths.append(len(argument))
        return theta

    solver(torch.randn(1, N), argument)
    assert lengths == [S]


def test_in_a_batch_of_one_all_that_is_longer_is_marked():
    solver = ste(lambda theta, mask: select_k(theta, 2, mask))
    mask = torch.ones(N, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"args\[0\] has length 5, the batch 1: .*shared"):
        solver(torch.randn(1, N), mask)
    assert solver(torch.randn(1, N), shared(mask)).sum() == solver(torch.randn(1, N), mask[None]).sum() == 2


def test_an_empty_batch_asks_nothing_of_its_arguments():
    for solver in (select_k, batched(lambda theta, *_: theta)):
        assert ste(solver)(torch.randn(0, N), [1, 2]).shape == (0, N)


def test_matrices_that_all_instances_share_are_marked_or_bound():
    theta, matrix, bound = torch.randn(B, N), torch.ones(2, N), torch.tensor([2.0, 3.0])
    with pytest.raises(ValueError, match=r"args\[0\] has length 2, .*shared"):
        ste(binary_programme)(theta, matrix, bound)
    z = ste(binary_programme)(theta, shared(matrix), b_ub=shared(bound))
    assert torch.equal(z, ste(functools.partial(binary_programme, A_ub=matrix, b_ub=bound))(theta))
    weights = torch.arange(1, N + 1)
    with pytest.raises(ValueError, match=r"weights has length 5, .*shared"):
        ste(knapsack)(theta, weights=weights, capacity=6)
    assert torch.equal(ste(knapsack)(theta, shared(weights), 6), knapsack(theta, weights, 6))


def test_a_pair_of_columns_that_would_be_dealt_out_as_two_instances_is_an_error():
    noise = GumbelNoiseDistribution()
    lifted = ste(batched(lambda theta, *_, **__: theta), nb_samples=2, noise_distribution=noise)
    plain = ste(lambda theta, pair: theta * len(pair[0]), nb_samples=2, noise_distribution=noise)
    theta, columns = torch.randn(1, N), (torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match=r"args\[0\] has length 2, the batch 1: .* dict"):
        lifted(theta, columns)
    lifted(theta, dict(zip("ab", columns))), plain(theta, columns)


SIZED = st.integers(0, 5).flatmap(
    lambda n: st.sampled_from([torch.zeros(n, 2), np.zeros(n), [Problem("a")] * n, (0.5,) * n])
)
PLAIN = st.sampled_from([1, "word", None, torch.tensor(1.0)])
ARGUMENTS = st.recursive(
    SIZED | PLAIN | st.builds(shared, SIZED),
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.lists(inside, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("ab"), inside)
        | st.builds(Graphs, inside, inside, st.just("few"))
    ),
    max_leaves=6,
)
EACH = object()


def unsaid(value):
    """Say whether a value holds something longer than 1 in which nothing was dealt out or marked."""
    if isinstance(value, (dict, Graphs)):
        return any(map(unsaid, value.values() if isinstance(value, dict) else value))
    if isinstance(value, (list, tuple)):
        return any(map(unsaid, value)) or (len(value) > 1 and not any(map(says, value)))
    return isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim > 0 and len(value) > 1


def says(value):
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return value is EACH or isinstance(value, Shared) or any(map(says, inside))


@given_by(st.integers(1, 4), ARGUMENTS)
def test_nothing_of_another_length_gets_past_unmarked_and_an_error_says_where_it_is(batch, argument):
    try:
        left = assign(argument, batch, lambda value: EACH, lambda value: value, "argument")
    except ValueError as error:
        at, length = re.search(r"argument (argument.*?) has length (\d+), ", str(error)).groups()
        assert len(eval(at, {"argument": argument})) == int(length) not in (0, 1, batch)
    else:
        assert not unsaid(left)
    assert assign({"a": shared(argument)}, batch, repr, lambda value: EACH) == {"a": EACH}


def test_a_cache_reaches_the_solver_as_the_very_dict():
    cache = {}

    @ste
    def solver(theta, cache):
        cache["calls"] = cache.get("calls", 0) + 1
        return select_k(theta, 2)

    solver(torch.randn(B, N), cache), solver(torch.randn(B, N), cache)
    assert cache == {"calls": 2}


def test_a_solver_that_writes_on_its_arguments_leaves_the_callers_alone():
    inside = torch.ones(B)
    columns = {"nested": [inside, shared(np.ones(4))]}

    @ste(nb_samples=S)
    def solver(theta, columns):
        columns["nested"][0].zero_()
        columns["nested"][1][:] = 0
        return select_k(theta, 2)

    solver(torch.randn(B, N), columns)
    assert inside.sum() == B and columns["nested"][1].value.sum() == 4


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
    before = target._state.tolist()
    theta = torch.randn(4, 6, requires_grad=True)
    aimle(LeavesOut(slice(None)), target_distribution=target)(theta).sum().backward()
    assert theta.grad.eq(0).all()
    assert target._state.tolist() == before


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
