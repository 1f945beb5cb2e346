"""The examples in docstrings run as they stand, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import imle
import imle.solvers

MODULES = ["imle", *(module.name for module in pkgutil.walk_packages(imle.__path__, "imle."))]
ABSTRACT = {"BaseNoiseDistribution", "BaseTargetDistribution", "BatchedSolver"}
SAMPLES = ["gumbel_softmax", "concrete_max", "softsub"]
MARGINALS = ["spanning_tree_marginals", "spanning_tree_edge_marginals"]
FAMILIES = ["k_subsets", "knapsacks", "spanning_trees", "directed_spanning_trees", "edge_subsets", "any_edges"]
FUNCTIONS = [
    *((f"imle.{name}", name) for name in ("aimle", "imle", "ste", "sfe", "blackbox", "identity", "perturbed", "lpgd")),
    *(("imle.k_subsets", name) for name in ("log_partition", "marginals", "log_prob", "entropy", "sample")),
    *(("imle.knapsacks", name) for name in ("log_partition", "marginals", "sample")),
    ("imle.simple", "SIMPLE"),
    ("imle.k_subset_sfe", "KSubsetSFE"),
    ("imle.fenchel_young", "FenchelYoungLoss"),
    ("imle.spo_plus", "SPOPlusLoss"),
    ("imle.noise", "NormalNoiseDistribution"),
]
PUBLIC = [
    *FUNCTIONS,
    ("imle.diagnostics", "gradient_report"),
    *(("imle.wrapper", name) for name in ("aimle", "imle", "AdaptiveTargetDistribution", "TargetDistribution")),
    *(("imle.relaxations", name) for name in [*SAMPLES, *MARGINALS]),
    *(("imle.structures", name) for name in ["stochastic_softmax", *FAMILIES]),
    *((getattr(imle, name).__module__, name) for name in imle.__all__ if name not in ABSTRACT),
    *((getattr(imle.solvers, name).__module__, name) for name in imle.solvers.__all__ if name not in ABSTRACT),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module)
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=str)
def test_every_public_name_has_an_example(module, name):
    value = getattr(importlib.import_module(module), name)
    assert inspect.getdoc(value)
    assert doctest.DocTestFinder(recurse=False).find(value, name)[0].examples, f"{module}.{name} has no example"


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name):
    module = importlib.import_module(name)
    for key, value in vars(module).items():
        if not key.startswith("_") and getattr(value, "__module__", None) == name:
            assert inspect.getdoc(value), f"{name}.{key}"
            methods = vars(value).items() if inspect.isclass(value) else ()
            for method, function in methods:
                if not method.startswith("_") and inspect.isfunction(function):
                    assert function.__doc__, f"{name}.{key}.{method}"
