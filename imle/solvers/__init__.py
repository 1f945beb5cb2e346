"""Black boxes: solvers of a batch of instances, and a way to make one from a solver of a single instance.

A solver takes parameters theta [B, ...] and returns solutions z of the same shape and dtype, without a gradient;
an estimator (`imle.aimle`, `imle.imle`, ...) or an `imle.layers.MAPLayer` gives it one.

    select_k              the k largest of N entries, [B, ..., N]; exactly k, also on ties
    mathias_select_k      all entries that reach the k-th largest; more than k on ties
    spanning_tree         maximum spanning tree, weights and adjacency matrix [B, n, n]
    spanning_tree_edges   the same on vectors of undirected edges, [B, n (n - 1) / 2]
    shortest_path         cheapest path across a grid of costs, [B, H, W]; it minimises
    batched               lifts any solver of one instance, in threads or processes if wanted
"""

from imle.solvers.batched import BatchedSolver, batched
from imle.solvers.shortest_path import shortest_path
from imle.solvers.spanning_tree import spanning_tree, spanning_tree_edges
from imle.solvers.top_k import mathias_select_k, select_k

__all__ = [
    "BatchedSolver",
    "batched",
    "mathias_select_k",
    "select_k",
    "shortest_path",
    "spanning_tree",
    "spanning_tree_edges",
]
