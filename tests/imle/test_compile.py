"""Under `torch.compile` and `torch.export`: solvers are graphs; estimators break the graph, and say so."""

import functools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from imle._compile import _TAKES_REASON, REASON
from imle.aimle import aimle
from imle.imle import imle
from imle.layers import MAPLayer
from imle.noise import SumOfGammaNoiseDistribution
from imle.sfe import sfe
from imle.solvers import (
    grid_arcs,
    mathias_select_k,
    select_k,
    shortest_path,
    shortest_path_arcs,
    spanning_tree,
    spanning_tree_edges,
)
from imle.ste import ste

ESTIMATORS = {"aimle": aimle, "imle": imle, "ste": ste, "sfe": sfe}
SOLVERS = {
    "select_k": (functools.partial(select_k, k=2), (6, 5)),
    "select_k, many short rows": (functools.partial(select_k, k=2), (4000, 20)),
    "select_k, masked": (lambda theta: select_k(theta, 2, mask=torch.arange(theta.shape[-1]) < 4), (6, 5)),
    "mathias_select_k": (functools.partial(mathias_select_k, k=2), (6, 5)),
    "spanning_tree": (spanning_tree, (6, 4, 4)),
    "spanning_tree_edges": (spanning_tree_edges, (6, 6)),
}
select_two = functools.partial(select_k, k=2)


class Solver(torch.nn.Module):
    """A function as a module, as `torch.export` wants it."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, theta):
        return self.function(theta)


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def solutions(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_is_one_graph(name):
    solver, shape = SOLVERS[name]
    theta, other = torch.randn(2, *shape)
    compiled = torch.compile(solver, fullgraph=True, backend="eager")
    exported = torch.export.export(Solver(solver), (theta,)).module()
    assert torch.equal(compiled(other), solver(other))
    assert torch.equal(exported(other), solver(other))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_in_a_whole_graph_says_that_it_breaks_the_graph_on_purpose(name, training):
    layer = MAPLayer(select_two, ESTIMATORS[name]()).train(training)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=REASON if _TAKES_REASON else "disable"):
        compiled(torch.randn(6, 5))


@pytest.mark.skipif(not _TAKES_REASON, reason="torch.export of this version traces through no disabled function")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_layer_in_evaluation_is_exported_for_any_batch_size(name):
    layer = MAPLayer(select_two, ESTIMATORS[name]()).eval()
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(layer, (torch.randn(6, 5),), dynamic_shapes=({0: batch},)).module()
    theta = torch.randn(4, 5)
    assert torch.equal(solutions(exported(theta)), select_two(theta))


def under_make_fx(layer, theta):
    return make_fx(lambda theta: layer(theta))(torch.rand_like(theta))(theta)


def under_a_fake_mode(layer, theta):
    with FakeTensorMode() as mode:
        layer(mode.from_tensor(theta))
    return layer(theta)


def with_default(device=None, dtype=torch.float32):
    def call(layer, theta):
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device or "cpu"):
                return layer(theta)
        finally:
            torch.set_default_dtype(torch.float32)

    return call


WAYS = {  # to run a layer where tensors are not what they seem
    "export": lambda layer, theta: torch.export.export(layer, (torch.rand_like(theta),)).module()(theta),
    "make_fx": under_make_fx,
    "a fake mode": under_a_fake_mode,
    "compile": lambda layer, theta: torch.compile(layer, backend="eager")(theta),
    "vmap": lambda layer, theta: torch.vmap(layer, randomness="same")(theta[None])[0],
    "grad": lambda layer, theta: torch.func.grad(lambda theta: (theta * layer(theta)).sum())(theta),
    "inference mode": lambda layer, theta: torch.inference_mode()(layer)(theta),
    "another default device": with_default(device="meta"),
    "another default dtype": with_default(dtype=torch.bfloat16),
}


@pytest.mark.parametrize("neighbours", [4, 8, None])
@pytest.mark.parametrize("way", WAYS)
def test_what_a_path_needs_is_not_kept_as_it_was_traced(way, neighbours):
    size = 5 + list(WAYS).index(way)  # of no other test: nothing is kept yet
    costs = torch.rand(3, size, size + 1)
    solver, expected = functools.partial(shortest_path, neighbours=neighbours), None
    if neighbours is None:
        arcs = grid_arcs(2, size)
        costs, order = torch.rand(3, arcs.shape[1]), torch.randperm(arcs.shape[1])
        solver = functools.partial(shortest_path_arcs, arcs=arcs, source=0, target=2 * size - 1)
    layer = MAPLayer(solver, ste()).eval()
    z = WAYS[way](layer, costs)
    theta = costs.clone().requires_grad_()
    (layer(theta) * theta).sum().backward()
    if neighbours is None:  # by names that nothing was kept under
        expected = torch.zeros_like(costs)
        expected[:, order] = shortest_path_arcs(costs[:, order], arcs[:, order], 0, 2 * size - 1)
    else:
        expected = shortest_path(costs.mT, neighbours).mT
    for found in (z, layer(costs), theta.grad):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("way", WAYS)
def test_a_table_of_noise_is_not_kept_as_it_was_traced(way):
    k = 2.0 + list(WAYS).index(way) / 16  # of no other test
    noise = SumOfGammaNoiseDistribution(k, nb_iterations=1, device="cpu")  # Gamma(1/k, 1)
    layer = Solver(lambda theta: theta + noise.sample(theta.shape, dtype=torch.float64))
    WAYS[way](layer, torch.zeros(2, 3, dtype=torch.float64))
    p = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    assert torch.allclose(torch.special.gammainc(p.new_tensor(1 / k), noise.quantile(p)), p)
    assert noise.sample((5,), dtype=torch.float64).mul(torch.ones(5, requires_grad=True)).sum().backward() is None
