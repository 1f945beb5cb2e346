"""Differentiable layers from black-box combinatorial solvers.

    from imle.aimle import aimle          # adaptive finite differences (AAAI 2023)
    from imle.imle import imle            # implicit maximum likelihood (NeurIPS 2021)
    from imle.ste import ste              # straight-through
    from imle.sfe import sfe              # score function

The four functions live in modules of their own names and are not re-exported here: they would hide the modules.
"""

from imle.layers import MAPLayer
from imle.noise import BaseNoiseDistribution, GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.target import AdaptiveTargetDistribution, BaseTargetDistribution, TargetDistribution

__all__ = [
    "AdaptiveTargetDistribution",
    "BaseNoiseDistribution",
    "BaseTargetDistribution",
    "GumbelNoiseDistribution",
    "MAPLayer",
    "SumOfGammaNoiseDistribution",
    "TargetDistribution",
]
