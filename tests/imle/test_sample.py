"""The ten-line sample of the README: a solver of one instance in numpy, and a decorator."""

import numpy as np
import torch
from torch import Tensor

from imle.aimle import aimle
from imle.target import AdaptiveTargetDistribution


def solver(weights: np.ndarray) -> np.ndarray:
    """Choose the two heaviest of some items."""
    y = np.zeros_like(weights)
    y[np.argsort(weights)[-2:]] = 1.0
    return y


def sample():
    """Return what the sample defines."""
    target_distribution = AdaptiveTargetDistribution(initial_alpha=1.0, initial_beta=0.0)

    def batched_solver(weights_batch: Tensor) -> Tensor:
        weights_batch = weights_batch.detach().cpu().numpy()
        y_batch = np.asarray([solver(w) for w in list(weights_batch)])
        return torch.tensor(y_batch, requires_grad=False)

    @aimle(target_distribution=target_distribution)
    def differentiable_solver(weights_batch: Tensor) -> Tensor:
        return batched_solver(weights_batch)

    return differentiable_solver, target_distribution


def test_the_sample_gives_the_solver_a_gradient_once_beta_has_grown():
    differentiable_solver, target_distribution = sample()
    weights = torch.tensor([[0.50, 0.49, 0.48, 0.10], [0.20, 0.90, 0.21, 0.50]], requires_grad=True)
    wanted = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    gradients, betas = [], []
    for _ in range(200):
        weights.grad = None
        y = differentiable_solver(weights)
        assert y.tolist() == [[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0]]
        (y - wanted).square().sum().backward()
        gradients.append(weights.grad)
        betas.append(target_distribution.beta)
    assert not gradients[0].any()
    assert betas[0] > 0
    first = next(i for i, gradient in enumerate(gradients) if gradient.any())
    assert betas[: first + 1] == sorted(betas[: first + 1])
    # away from the item that is chosen wrongly, towards the one that is not chosen, and nowhere else
    assert gradients[first][0, 1] > 0 > gradients[first][0, 2]
    assert not gradients[first][0, [0, 3]].any()
    assert not gradients[first][1].any()


def test_the_sample_learns_the_wanted_solution():
    differentiable_solver, _ = sample()
    weights = torch.tensor([[0.50, 0.49, 0.48, 0.47]], requires_grad=True)
    wanted = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    optimiser = torch.optim.Adam([weights], lr=0.01)
    for _ in range(500):
        optimiser.zero_grad()
        (differentiable_solver(weights) - wanted).square().sum().backward()
        optimiser.step()
    assert torch.equal(differentiable_solver(weights), wanted)
