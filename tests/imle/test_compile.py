"""Under `torch.compile` and `torch.export`: solvers are graphs; estimators break the graph, and say so."""

import functools

import pytest
import torch

from imle._compile import _TAKES_REASON, REASON
from imle.aimle import aimle
from imle.imle import imle
from imle.layers import MAPLayer
from imle.sfe import sfe
from imle.solvers import mathias_select_k, select_k, spanning_tree, spanning_tree_edges
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
