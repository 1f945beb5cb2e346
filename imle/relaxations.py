"""Relaxations: soft, differentiable stand-ins for a discrete choice, in place of an estimator for the choice itself.

Everything is batched and differentiable, on any device; half precision is computed in float32. The marginals of
spanning trees are the gradient of the log partition function, and are computed as just that: a recursion in log space
for the partition function, which subtracts nothing and so loses nothing to cancellation, and autograd for the rest.
Those of k-subsets are in `imle.k_subsets`.

Scores may be of any size. A score far below the others (-1e6, -1e9, -inf: a mask) stands for its limit at -inf: it is
chosen only where too few others are left, and then like all others of its size. A NaN makes its row NaN.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from imle.noise import GumbelNoiseDistribution, draw

# Stands for log 0. Finite, because the derivative of logsumexp at a row of infinities is not a number.
_LOG_ZERO = -1e30


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the value of `hard` with the gradient of `soft` (Bengio et al. 2013); both of one shape [...]."""
    return hard.detach() + (soft - soft.detach())


def gumbel_softmax(
    logits: Tensor, temperature: float, hard: bool = False, generator: Generator | None = None
) -> Tensor:
    """Sample a relaxed one-hot vector for each row of logits.

    Reference: Jang, Gu, Poole, "Categorical Reparameterization with Gumbel-Softmax", 2017; Maddison, Mnih, Teh,
    "The Concrete Distribution", 2017.

    Args:
        logits: unnormalised log-probabilities, [..., N].
        temperature: positive; lower is closer to one-hot and has gradients of larger variance.
        hard: return the one-hot vector of the largest entry, with the gradient of the relaxed one.
        generator: source of the noise; torch's own when None.

    Returns:
        Samples of total mass 1, [..., N].

    Raises:
        ValueError: the temperature is not positive.

    Example:
        >>> gumbel_softmax(torch.randn(3, 5), temperature=0.5).sum(dim=1)
        tensor([1.0000, 1.0000, 1.0000])
    """
    check_temperature(temperature)
    scores = (perturbed(logits, 1, generator) / temperature).clamp(_LOG_ZERO, -_LOG_ZERO)
    soft = torch.softmax(scores, dim=-1).to(logits.dtype)
    if not hard:
        return soft
    return straight_through(torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0), soft)


def concrete_max(logits: Tensor, k: int, temperature: float, generator: Generator | None = None) -> Tensor:
    """Sample a relaxed subset of at most k entries: the elementwise maximum of k independent Concrete samples.

    Two of the k samples may fall on the same entry, so the mass is at most k.
    Reference: Chen et al., "Learning to Explain: An Information-Theoretic Perspective on Model Interpretation", 2018.

    Args:
        logits: unnormalised log-probabilities, [..., N].
        k: number of samples, 1 to N.
        temperature: positive; lower is closer to a subset and has gradients of larger variance.
        generator: source of the noise; torch's own when None.

    Returns:
        Samples, [..., N], each entry in [0, 1].

    Raises:
        ValueError: k is outside 1..N, or the temperature is not positive.

    Example:
        >>> bool((concrete_max(torch.randn(3, 5), k=2, temperature=0.5).sum(dim=1) <= 2).all())
        True
    """
    _check_subset_size(k, logits)
    repeated = _at_least_float32(logits).expand(k, *logits.shape)
    return gumbel_softmax(repeated, temperature, generator=generator).amax(dim=0).to(logits.dtype)


def softsub(logits: Tensor, k: int, temperature: float, generator: Generator | None = None) -> Tensor:
    """Sample a relaxed k-subset by k rounds of softmax, each of which masks what the rounds before it took.

    Reference: Xie, Ermon, "Reparameterizable Subset Sampling via Continuous Relaxations", 2019.

    Args:
        logits: log-weights, [..., N].
        k: size of the subset, 1 to N.
        temperature: positive; lower is closer to a subset and has gradients of larger variance.
        generator: source of the noise; torch's own when None.

    Returns:
        Samples of total mass k, [..., N].

    Raises:
        ValueError: k is outside 1..N, or the temperature is not positive.

    Example:
        >>> softsub(torch.randn(3, 5), k=2, temperature=0.5).sum(dim=1)
        tensor([2.0000, 2.0000, 2.0000])
    """
    check_temperature(temperature)
    scores = (perturbed(logits, k, generator) / temperature).clamp(_LOG_ZERO, -_LOG_ZERO)
    log_choice = torch.log_softmax(scores, dim=-1)
    choice = chosen = log_choice.exp()
    for _ in range(k - 1):
        scores = scores + _log_not_chosen(log_choice, choice) / temperature  # the mask accumulates
        log_choice = torch.log_softmax(scores, dim=-1)
        choice = log_choice.exp()
        chosen = chosen + choice
    return chosen.to(logits.dtype)


def perturbed(logits: Tensor, k: int, generator: Generator | None = None) -> Tensor:
    """Return logits plus Gumbel noise, up to a constant in each row, which no choice of k entries depends on.

    Args:
        logits: [..., N], of any size.
        k: size of the subset, 1 to N.
        generator: source of the noise; torch's own when None.

    Raises:
        ValueError: k is outside 1..N.
    """
    _check_subset_size(k, logits)
    logits = _at_least_float32(logits)
    largest = logits.detach().topk(k, dim=-1).values if k > 1 else logits.detach().amax(-1, keepdim=True)
    largest = _largest_finite(largest)
    # Noise is lost where it is added to large numbers; what the k largest have in common is taken off before.
    common = largest[..., -1:].clamp(min=0) + largest[..., :1].clamp(max=0)
    noise = draw(GumbelNoiseDistribution(), logits.shape, like=logits, generator=generator)
    return logits - common + noise


def spanning_tree_marginals(weights: Tensor, max_range: float = math.inf) -> Tensor:
    """Compute how likely each edge is to be in a spanning tree drawn with probability proportional to
    exp(sum of its edges' weights).

    Args:
        weights: log-weights of the edges, [B, n, n]; an edge has the mean of its two entries, the diagonal is unused.
            Where the edges above a mask (-1e6, -1e9, -inf) do not connect the graph, each tree has as few masked edges
            as can be, all equally likely.
        max_range: weights further than this below the largest one of their graph are raised to that distance;
            smaller keeps more edges in play, and more gradients alive, at the price of a softer tree.

    Returns:
        Marginals, [B, n, n], symmetric, zero on the diagonal, with sum n - 1 over the edges (each counted once).

    Raises:
        ValueError: weights are not square, or max_range is not positive.

    Example:
        >>> spanning_tree_marginals(torch.zeros(1, 3, 3))
        tensor([[[0.0000, 0.6667, 0.6667],
                 [0.6667, 0.0000, 0.6667],
                 [0.6667, 0.6667, 0.0000]]])
    """
    if weights.ndim < 2 or weights.shape[-1] != weights.shape[-2] or weights.shape[-1] < 2:
        raise ValueError(f"weights must be [B, n, n] with n of 2 or more, got {list(weights.shape)}")
    n = weights.shape[-1]
    first, second = torch.triu_indices(n, n, 1, device=weights.device)
    edges = _at_least_float32(weights)
    edges = 0.5 * edges[..., first, second] + 0.5 * edges[..., second, first]  # halved first: the sum might overflow
    return _symmetric_matrix(spanning_tree_edge_marginals(edges, max_range), n).to(weights.dtype)


def spanning_tree_edge_marginals(weights: Tensor, max_range: float = math.inf) -> Tensor:
    """Compute `spanning_tree_marginals` from and to vectors of edges, in the order of `torch.triu_indices(n, n, 1)`.

    The partition function is a minor of the graph's Laplacian (the matrix-tree theorem of Kirchhoff). Gaussian
    elimination takes that determinant in n - 1 steps; each is a star-mesh transform, which removes a vertex and joins
    its neighbours. It only adds and divides positive weights, so that in log space weights may differ by any factor.

    Args:
        weights: log-weights, [..., n (n - 1) / 2].
        max_range: as in `spanning_tree_marginals`.

    Returns:
        Marginals, [..., n (n - 1) / 2], each in [0, 1], with sum n - 1.

    Raises:
        ValueError: the last dimension is not n (n - 1) / 2 for any n, or max_range is not positive.

    Example:
        >>> spanning_tree_edge_marginals(torch.zeros(3))
        tensor([0.6667, 0.6667, 0.6667])
    """
    n = (1 + math.isqrt(1 + 8 * weights.shape[-1])) // 2
    if n < 2 or n * (n - 1) // 2 != weights.shape[-1]:
        raise ValueError(f"no graph has {weights.shape[-1]} undirected edges; expected n (n - 1) / 2 weights")
    if not max_range > 0:
        raise ValueError(f"max_range must be positive, got {max_range}")
    theta = _largest_finite(_at_least_float32(weights))
    if max_range < math.inf:
        theta = (theta - theta.amax(-1, keepdim=True)).clamp(min=-max_range)
    if max_range > _negligible(theta.dtype):  # from which on nothing is subtracted that is far above
        theta = _narrow_gaps(theta)
    return _gradient(lambda theta: _log_tree_sum(_symmetric_matrix(theta, n)), theta).to(weights.dtype)


def _check_subset_size(k: int, logits: Tensor) -> None:
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"cannot choose {k} of {logits.shape[-1]} entries; k must be 1 to {logits.shape[-1]}")


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive.

    Raises:
        ValueError: it is not.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature of a relaxation must be positive, got {temperature}")


def _at_least_float32(scores: Tensor) -> Tensor:
    return scores.float() if scores.itemsize < 4 else scores


def _largest_finite(scores: Tensor) -> Tensor:
    """Return scores with the largest numbers of their dtype for infinities, whose differences are not numbers."""
    limits = torch.finfo(scores.dtype)
    return scores.clamp(limits.min, limits.max)


def _negligible(dtype: torch.dtype) -> float:
    """Return how far a log-weight lies below another that it changes nothing, even a million times: 40 in float32."""
    return -2.5 * math.log(torch.finfo(dtype).eps)


def _narrow_gaps(weights: Tensor) -> Tensor:
    """Return weights [..., E] with the same marginals of trees, but with no gap between one and the next smaller one
    that is wider than negligible: so rounding does not see how wide they were.

    Weights between two wide gaps move together. Trees have as many edges from above a wide gap as they can, and which
    ones depends on nothing below; hence a gap's width does not matter.
    """
    far = _negligible(weights.dtype)
    with torch.no_grad():
        ordered, order = weights.sort(dim=-1, descending=True)
        steps = ordered - ordered.roll(1, -1)  # the first one, positive, is none
        starts = steps < -far
        # Of the group between two wide gaps that each weight is in: its largest, and where that one goes.
        top = torch.where(starts, ordered, ordered[..., :1]).cummin(-1).values
        goal = torch.where(starts, steps.clamp(-far, 0.0).cumsum(-1), 0.0).cummin(-1).values
        top, goal = (torch.empty_like(weights).scatter_(-1, order, value) for value in (top, goal))
    return weights - top + goal


def _log_not_chosen(log_choice: Tensor, choice: Tensor) -> Tensor:
    """Compute log(1 - choice) of probabilities [..., N], given their log too, also where one of them rounds to 1.

    Only the largest entry can do so: there, 1 - choice is the share of all the others, summed as such.
    """
    top = log_choice.argmax(-1, keepdim=True)
    log_share_of_others = log_choice.scatter(-1, top, -math.inf).logsumexp(-1, keepdim=True)
    return torch.log1p(-choice.scatter(-1, top, 0.0)).scatter(-1, top, log_share_of_others)


def _gradient(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """Compute the gradient of a batched scalar function; itself differentiable when theta requires gradients."""
    differentiable = torch.is_grad_enabled() and theta.requires_grad
    with torch.enable_grad():
        inputs = theta if differentiable else theta.detach().requires_grad_()
        return torch.autograd.grad(function(inputs).sum(), inputs, create_graph=differentiable)[0]


def _log_tree_sum(weights: Tensor) -> Tensor:
    """Compute the log of the sum of exp(weight of the tree) over all spanning trees; [..., n, n] -> [...]."""
    total = torch.zeros_like(weights[..., 0, 0])
    while weights.shape[-1] > 1:
        star = weights[..., 0, 1:]
        degree = star.logsumexp(-1)
        total = total + degree
        mesh = star.unsqueeze(-1) + star.unsqueeze(-2) - degree[..., None, None]
        # not logaddexp: its second derivative is nan where the two are far apart
        weights = torch.stack([weights[..., 1:, 1:], mesh]).logsumexp(0)
    return total


def _symmetric_matrix(edges: Tensor, n: int) -> Tensor:
    """Return edges [..., n (n - 1) / 2] as matrices [..., n, n] with a diagonal of zeros."""
    first, second = torch.triu_indices(n, n, 1, device=edges.device)
    position = torch.full((n, n), edges.shape[-1], device=edges.device)  # of the zero that is appended
    position[first, second] = position[second, first] = torch.arange(edges.shape[-1], device=edges.device)
    # several times faster than writing into a matrix, and so are its derivatives
    return F.pad(edges, (0, 1)).index_select(-1, position.flatten()).unflatten(-1, (n, n))
