"""SIMPLE: k-subsets drawn exactly, and the gradient of their exact marginals."""

from __future__ import annotations

import torch
from torch import Tensor

from imle.k_subsets import KSubsetLayer, marginals
from imle.perturb_and_map import over_samples


class SIMPLE(KSubsetLayer):
    """Draw k-subsets with probability proportional to exp(<z, theta>), with the gradient of their marginals.

        g = (d mu / d theta) dy,    mu(theta) = E[z]

    The Jacobian is exact, so there is no perturbation, no step and nothing to tune; g is right for losses that are
    linear in z, and biased for others. The subset is taken along the last dimension of theta.

    Source: Ahmed, Zeng, Niepert, Van den Broeck, "SIMPLE: A Gradient Estimator for k-Subset Sampling", ICLR 2023.

    Args:
        k: size of the subset.
        nb_samples: S, draws for each instance; more is less noisy.
        generator: the random state; None uses torch's own.
        sample_reduction: "mean" for a loss that sums over samples, "sum" for one that is a mean over all rows.

    Raises:
        ValueError: k or nb_samples is out of its range, or theta has no batch dimension.
        TypeError: theta is not a tensor of floating-point numbers.
        FloatingPointError: theta is NaN.

    Example:
        >>> layer = SIMPLE(k=2, nb_samples=4)
        >>> theta = torch.randn(3, 5, requires_grad=True)
        >>> z = layer(theta)
        >>> (z - 1).square().sum().backward()
        >>> z.shape, layer.eval()(theta).shape, theta.grad.shape
        (torch.Size([12, 5]), torch.Size([3, 5]), torch.Size([3, 5]))
    """

    def sample(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return draws z `[B*S, ..., N]` that carry a gradient, in either mode."""
        z = self.draw(theta, generator)
        if not (torch.is_grad_enabled() and theta.requires_grad):
            return z
        mu = marginals(theta, self.k).repeat_interleave(self.nb_samples, dim=0)
        return z + over_samples(mu - mu.detach(), self.nb_samples, self.sample_reduction)
