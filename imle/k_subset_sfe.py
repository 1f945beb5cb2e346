"""The score-function estimator for k-subsets, whose probabilities are known exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from imle.k_subsets import KSubsetLayer, log_prob
from imle.perturb_and_map import over_samples


class KSubsetSFE(KSubsetLayer):
    """Draw k-subsets with probability proportional to exp(<z, theta>), and return their log-probabilities.

        grad E[L(z)] = E[(L(z) - b) grad log p(z; theta)],    grad log p(z; theta) = z - E[z]

    without bias, for any loss L, differentiable or not. `imle.sfe.score_function_loss` joins the losses of the
    solutions with `log_prob`; its baseline "leave_one_out" takes for b the mean loss of the other samples. Beside
    `imle.sfe.sfe`, whose score is that of the noise, this one has no noise left in it but that of z itself.

    Source: Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
    Machine Learning 1992; Kool, van Hoof, Welling, "Buy 4 REINFORCE samples, get a baseline for free!", 2019.

    Args:
        k: size of the subset.
        nb_samples: S, draws for each instance; 2 or more for a leave-one-out baseline.
        generator: the random state; None uses torch's own.
        sample_reduction: "mean" for a loss that sums over samples, "sum" for one that is a mean over all rows.

    Raises:
        ValueError: k or nb_samples is out of its range, or theta has no batch dimension.
        TypeError: theta is not a tensor of floating-point numbers.
        FloatingPointError: theta is NaN.

    Example:
        >>> from imle.sfe import score_function_loss
        >>> layer = KSubsetSFE(k=2, nb_samples=8)
        >>> theta = torch.randn(3, 5, requires_grad=True)
        >>> z, log_prob = layer(theta)
        >>> losses = (z - 0.5).square().sum(dim=1)
        >>> score_function_loss(losses, log_prob, nb_samples=8, baseline="leave_one_out").mean().backward()
        >>> theta.grad.shape
        torch.Size([3, 5])
    """

    def sample(self, theta: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return draws z `[B*S, ..., N]`, without a gradient, and log p(z) `[B*S]`, differentiable, in either mode."""
        z = self.draw(theta, generator)
        draws = z.unflatten(0, (theta.shape[0], self.nb_samples))
        log_probs = log_prob(theta.unsqueeze(1), draws, self.k).unsqueeze(-1).flatten(2).sum(dim=2).flatten()
        return z, over_samples(log_probs, self.nb_samples, self.sample_reduction)

    def solve(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the likeliest subsets `[B, ..., N]`, which were not drawn, and zeros `[B]` for their log p."""
        z = super().solve(theta)
        return z, z.new_zeros(z.shape[0])
