"""Sum-of-Gamma noise against the sum of ten draws that defines it."""

import math

import torch
from torch import Tensor

from benchmarks.measure import Row, compare
from imle.noise import GumbelNoiseDistribution, SumOfGammaNoiseDistribution


def draw_and_sum(shape: tuple[int, ...], k: int, iterations: int, device: torch.device) -> Tensor:
    """Return SoG(k, s) noise by its definition: s Gamma draws for each number."""
    total = torch.zeros(shape, device=device)
    for i in range(1, iterations + 1):
        shape_parameter = torch.tensor(1.0 / k, device=device)
        rate = torch.tensor(i / k, device=device)
        total += torch.distributions.Gamma(shape_parameter, rate).sample(shape)
    return (total - math.log(iterations)) / k


def run(device: torch.device) -> list[Row]:
    """Measure at the shape of the VAE's training step."""
    shape = (2000, 10, 20)
    plain = "draw and sum"

    def reference() -> Tensor:
        return draw_and_sum(shape, 10, 10, device)

    sog, gumbel = SumOfGammaNoiseDistribution(k=10), GumbelNoiseDistribution()
    return [
        compare(
            "SumOfGamma [2000, 10, 20]",
            lambda: sog.sample(shape, device=device),
            plain,
            reference,
            device,
            target=1 / 40,
        ),
        compare("Gumbel [2000, 10, 20]", lambda: gumbel.sample(shape, device=device), plain, reference, device),
    ]
