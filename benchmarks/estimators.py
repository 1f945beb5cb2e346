"""What an estimator itself costs, over growing numbers of samples and dimensions: layer against bare solver."""

import torch
from torch import Tensor

from benchmarks.measure import Row, compare
from imle.aimle import aimle
from imle.noise import SumOfGammaNoiseDistribution
from imle.solvers import select_k


def run(device: torch.device) -> list[Row]:
    """Measure forward and backward of the layer against the solver's calls on rows of the same number."""
    sizes = [(100, samples, 20) for samples in (1, 10, 100)] + [(100, 10, dimension) for dimension in (100, 1000)]
    return [_layer(batch, samples, dimension, device) for batch, samples, dimension in sizes]


def _layer(batch: int, samples: int, dimension: int, device: torch.device) -> Row:
    k = dimension // 2
    theta = torch.randn(batch, dimension, device=device, requires_grad=True)
    rows = torch.randn(batch * samples, dimension, device=device)
    two_sides = torch.cat([rows, rows])
    noise = SumOfGammaNoiseDistribution(k=k)

    @aimle(noise_distribution=noise, nb_samples=samples, symmetric_perturbation=True)
    def layer(theta: Tensor) -> Tensor:
        return select_k(theta, k)

    def forward_and_backward() -> None:
        layer(theta).sum().backward()

    def solver_alone() -> None:
        select_k(rows, k)
        select_k(two_sides, k)

    return compare(
        f"central AIMLE, B={batch}, S={samples}, D={dimension}",
        forward_and_backward,
        "its solver calls",
        solver_alone,
        device,
        repeats=3,
    )
