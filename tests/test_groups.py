"""Groups of a batch: several independent problems in one call, each as it would be alone."""

import math

import pytest
import torch

from imle.aimle import aimle
from imle.imle import imle
from imle.layers import MAPLayer
from imle.noise import BaseNoiseDistribution, GumbelNoiseDistribution, SumOfGammaNoiseDistribution, draw
from imle.solvers import select_k
from imle.ste import ste
from imle.target import AdaptiveTargetDistribution, TargetDistribution

GROUPS, ROWS, N = 3, 4, 6


class Uniform(BaseNoiseDistribution):
    """A noise of a user's own, which knows nothing of shares."""

    def sample(self, shape, *, device=None, dtype=None, generator=None):
        return torch.rand(shape, device=device, dtype=dtype, generator=generator)


NOISES = {"sog": SumOfGammaNoiseDistribution(2), "gumbel": GumbelNoiseDistribution(), "own": Uniform()}
ADAPTIVE = {"initial_beta": 0.3, "beta_update_step": 0.05, "target_norm": 1.5, "beta_update_momentum": 0.5}
ESTIMATORS = {
    "central": lambda **options: aimle(symmetric_perturbation=True, **adaptive(options)),
    "forward": lambda **options: aimle(**adaptive(options)),
    "exact scaling": lambda **options: aimle(**adaptive(options, exact_scaling=True)),
    "imle": lambda **options: imle(target_distribution=TargetDistribution(beta=2.0), **options),
    "imle adaptive": lambda **options: imle(**adaptive(options)),
    "ste": lambda **options: ste(**options),
}


def adaptive(options, **more):
    target = AdaptiveTargetDistribution(**ADAPTIVE, **more, groups=options.get("groups", 1))
    return {**options, "target_distribution": target}


def generators():
    return [torch.Generator().manual_seed(seed) for seed in range(GROUPS)]


def state(layer):
    return [value.tolist() for value in layer.state_dict().values()]


def select_two(theta):
    return select_k(theta, 2)


def run(layer, theta, dy):
    """Return z and the gradient of theta."""
    theta = theta.clone().requires_grad_()
    z = layer(theta)
    z.backward(dy)
    return z.detach(), theta.grad


@pytest.mark.parametrize("waiting", [True, False])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_group_is_what_it_would_be_alone(name, noise, waiting, no_waiting):
    options = {"noise_distribution": NOISES[noise], "nb_samples": 2}
    alone = [MAPLayer(select_two, ESTIMATORS[name](generator=source, **options)) for source in generators()]
    together = MAPLayer(select_two, ESTIMATORS[name](generator=generators(), groups=GROUPS, **options))
    if not waiting:
        no_waiting()
    for step in range(4):
        torch.manual_seed(step)
        # groups of different sizes of theta and dy, one of them without a gradient
        theta = torch.randn(GROUPS, ROWS, N) * torch.tensor([1.0, 5.0, 0.2])[:, None, None]
        dy = torch.randn(GROUPS, 2 * ROWS, N) * torch.tensor([1.0, 1e-3, step % 2])[:, None, None]
        z, gradient = run(together, theta.flatten(0, 1), dy.flatten(0, 1))
        expected = [run(layer, *problem) for layer, *problem in zip(alone, theta, dy, strict=True)]
        assert torch.equal(z, torch.cat([z for z, _ in expected]))
        expected_gradient = torch.cat([gradient for _, gradient in expected])
        if waiting:
            assert torch.equal(gradient, expected_gradient)
        torch.testing.assert_close(gradient, expected_gradient)
        assert gradient.abs().sum() > 0
    found, parts = state(together), [state(layer) for layer in alone]
    assert found == [list(values) for values in zip(*parts)]
    assert not found or len(set(found[0])) > 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("waiting", [True, False])
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_broken_group_leaves_the_others_alone(nonfinite, waiting, bad, no_waiting):
    if not waiting:
        no_waiting()

    def step(dy):
        layer = MAPLayer(select_two, ESTIMATORS["central"](groups=GROUPS, nonfinite=nonfinite))
        theta = torch.linspace(-1, 1, GROUPS * ROWS * N).view(-1, N).sin()
        return layer, run(layer, theta, dy)[1]

    dy = torch.randn(GROUPS * ROWS, N)
    healthy, expected = step(dy)
    broken = dy.clone()
    broken[ROWS + 1, 2] = bad
    layer, gradient = step(broken)
    second = slice(ROWS, 2 * ROWS)
    assert gradient[second].isnan().all() if nonfinite == "raise" else not gradient[second].any()
    for others in (slice(0, ROWS), slice(2 * ROWS, None)):
        assert torch.equal(gradient[others], expected[others]) and expected[others].any()
    beta, ordinary = layer.target_distribution.beta, healthy.target_distribution.beta
    assert beta == [ordinary[0], 0.3, ordinary[2]]
    assert 0.3 not in ordinary


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_room_for_a_large_step(dtype, groups):
    seen = []

    def solver(theta):
        seen.append(theta.clone())
        return select_two(theta)

    theta = torch.randn(4, N).to(dtype).requires_grad_()
    target = AdaptiveTargetDistribution(groups=groups)
    dy = torch.randn(4, N) * 1e-5
    dy[:, 0] = 0
    aimle(target_distribution=target, groups=groups)(solver)(theta).backward(dy.to(dtype))
    assert len(seen) == 2 and all(parameters.isfinite().all() for parameters in seen)
    assert theta.grad.isfinite().all()


def test_the_state_of_groups_is_one_number_each():
    target = AdaptiveTargetDistribution(initial_beta=0.5, groups=2)
    assert "beta=[0.5, 0.5]" in repr(target) and "groups=2" in repr(target)
    assert "beta=0.5" in repr(AdaptiveTargetDistribution(initial_beta=0.5))
    assert target.beta == [0.5, 0.5] and target.grad_norm == [1.0, 1.0]
    assert AdaptiveTargetDistribution(initial_beta=0.5).state_dict()["_beta"].shape == ()


@pytest.mark.parametrize("noise", NOISES)
def test_generators_draw_equal_shares(noise):
    eps = draw(NOISES[noise], (2 * GROUPS, 5), like=torch.zeros(1), generator=generators())
    expected = [draw(NOISES[noise], (2, 5), like=torch.zeros(1), generator=source) for source in generators()]
    assert torch.equal(eps, torch.cat(expected))


@pytest.mark.parametrize("noise", NOISES)
def test_shares_that_are_not_equal_are_refused(noise):
    with pytest.raises(ValueError, match="equal shares"):
        draw(NOISES[noise], (4, 5), like=torch.zeros(1), generator=generators())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups must be"),
        ({"groups": 2, "generator": generators()}, "3 generators"),
        ({"groups": 2, "target_distribution": AdaptiveTargetDistribution()}, "1 groups"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        aimle(**{"target_distribution": TargetDistribution(), **options})


@pytest.mark.parametrize("groups", [0, -1, 1.5])
def test_a_target_needs_a_number_of_groups(groups):
    with pytest.raises(ValueError, match="groups"):
        AdaptiveTargetDistribution(groups=groups)


def test_a_batch_that_is_no_multiple_of_its_groups_is_refused():
    layer = ESTIMATORS["forward"](groups=2)(select_two)
    theta = torch.randn(3, N, requires_grad=True)
    with pytest.raises(ValueError, match="3 cannot be split into 2"):
        layer(theta).sum().backward()
