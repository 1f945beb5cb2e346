"""Differentiable layers from black-box combinatorial solvers.

Five nouns: a *solver* maps theta `[B, ...]` to solutions of the same shape; *noise* perturbs theta; an *estimator* says
how a gradient gets past the solver; a *target* says how large a step its difference takes; a *layer* is a solver and
an estimator as a module.

    theta ---> + tau eps ---> solver ---> z ---> loss                     forward pass, S samples of each instance
      ^                                    |
      |                                    v dy
      +--- g = [solver(theta + tau' eps) - solver(theta - lambda dy + tau' eps)] / lambda        backward pass

    from imle.aimle import aimle          # adaptive finite differences (AAAI 2023)
    from imle.imle import imle            # implicit maximum likelihood (NeurIPS 2021)
    from imle.ste import ste              # straight-through
    from imle.sfe import sfe              # score function
    from imle.blackbox import blackbox    # black-box differentiation
    from imle.identity import identity    # identity with projection
    from imle.perturbed import perturbed  # perturbed optimisers; with imle.fenchel_young, a loss
    from imle.lpgd import lpgd            # Lagrangian proximal gradients
    from imle.simple import SIMPLE        # k-subsets exactly: a layer without a solver; also imle.k_subset_sfe
    from imle.spo_plus import SPOPlusLoss  # a loss of decisions

The functions live in modules of their own names and are not re-exported here: they would hide the modules. The modules
can be called in their place, so that `from imle import aimle` does as well (a type checker wants the imports above).
"""

from imle import aimle, blackbox, identity, imle, lpgd, perturbed, sfe, ste  # noqa: F401
from imle.auto import AutoTargetDistribution
from imle.layers import MAPLayer, RelaxedLayer
from imle.noise import (
    BaseNoiseDistribution,
    GumbelNoiseDistribution,
    NormalNoiseDistribution,
    SumOfGammaNoiseDistribution,
)
from imle.target import AdaptiveTargetDistribution, BaseTargetDistribution, TargetDistribution

__version__ = "0.2.0"

__all__ = [
    "AdaptiveTargetDistribution",
    "AutoTargetDistribution",
    "BaseNoiseDistribution",
    "BaseTargetDistribution",
    "GumbelNoiseDistribution",
    "MAPLayer",
    "NormalNoiseDistribution",
    "RelaxedLayer",
    "SumOfGammaNoiseDistribution",
    "TargetDistribution",
]
