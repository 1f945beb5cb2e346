"""Black boxes: solvers of a batch of instances, and a way to make one from a solver of a single instance.

A solver takes parameters theta [B, ...] and returns solutions z of the same shape and dtype, without a gradient;
an estimator (`imle.aimle`, `imle.imle`, ...) or an `imle.layers.MAPLayer` gives it one.

    select_k              the k largest of N entries, [B, ..., N]; exactly k, also on ties
    mathias_select_k      all entries that reach the k-th largest; more than k on ties
    ranking               ranks 1..N of N entries, [B, ..., N]
    assignment            matching of rows to columns, weights and permutation matrices [B, n, m]
    knapsack              items worth most within a capacity, [B, N]
    binary_programme      any linear programme in 0/1 variables, [B, ...]
    spanning_tree         maximum spanning tree, weights and adjacency matrix [B, n, n]
    spanning_tree_edges   the same on vectors of undirected edges, [B, n (n - 1) / 2]
    arborescence          maximum spanning arborescence, weights and adjacency matrix [B, n, n]
    shortest_path         cheapest path across a grid of costs, [B, H, W]; it minimises
    shortest_path_arcs    cheapest path of a directed graph, a cost for each arc, [B, A]; it minimises
    grid_arcs             the arcs of a grid, for that
    batched               lifts any solver of one instance, in threads or processes if wanted
"""

from imle.solvers.arborescence import arborescence
from imle.solvers.assignment import assignment
from imle.solvers.batched import BatchedSolver, batched
from imle.solvers.binary_programme import binary_programme
from imle.solvers.knapsack import knapsack
from imle.solvers.ranking import ranking
from imle.solvers.shortest_path import shortest_path
from imle.solvers.shortest_path_arcs import grid_arcs, shortest_path_arcs
from imle.solvers.spanning_tree import spanning_tree, spanning_tree_edges
from imle.solvers.top_k import mathias_select_k, select_k

__all__ = [
    "BatchedSolver",
    "arborescence",
    "assignment",
    "batched",
    "binary_programme",
    "grid_arcs",
    "knapsack",
    "mathias_select_k",
    "ranking",
    "select_k",
    "shortest_path",
    "shortest_path_arcs",
    "spanning_tree",
    "spanning_tree_edges",
]
