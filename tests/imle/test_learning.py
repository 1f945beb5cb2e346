"""Does it learn? Every estimator leads random parameters to the right subset, tree and path."""

import pytest
import torch
import torch.nn.functional as F

from imle.aimle import aimle
from imle.imle import imle
from imle.layers import MAPLayer
from imle.noise import GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.sfe import score_function_loss, sfe
from imle.solvers import select_k, shortest_path, spanning_tree_edges
from imle.ste import ste
from imle.target import AdaptiveTargetDistribution, TargetDistribution

STEPS = 150


def goals(solver, shape):
    """Solutions to find: those at random parameters of another seed."""
    return solver(torch.randn(shape, generator=torch.Generator().manual_seed(7)))


def select_three(theta):
    return select_k(theta, 3)


def cheapest_path(theta):
    """A path across a grid on which theta is what a cell is worth; it maximises."""
    return shortest_path(F.softplus(-theta), neighbours=4)


PROBLEMS = {
    "subset": (select_three, (4, 10)),
    "tree": (spanning_tree_edges, (4, 15)),
    "path": (cheapest_path, (4, 4, 4)),
}


def adaptive():
    return AdaptiveTargetDistribution(initial_beta=0.0, beta_update_step=0.05)


ESTIMATORS = {
    "aimle forward": lambda noise: aimle(target_distribution=adaptive(), noise_distribution=noise),
    "aimle central": lambda noise: aimle(
        target_distribution=adaptive(), noise_distribution=noise, symmetric_perturbation=True
    ),
    "aimle samples": lambda noise: aimle(target_distribution=adaptive(), noise_distribution=noise, nb_samples=4),
    "aimle marginals": lambda noise: aimle(
        target_distribution=adaptive(), noise_distribution=noise, nb_marginal_samples=4
    ),
    "imle": lambda noise: imle(target_distribution=TargetDistribution(beta=10.0), noise_distribution=noise),
    "ste": lambda noise: ste(noise_distribution=noise),
    "sfe": lambda noise: sfe(nb_samples=16),
}


def learn(layer, shape, goal, steps=STEPS):
    """Return the mean Hamming distance of MAP(theta) from the goal, before and after training."""
    theta = torch.nn.Parameter(0.1 * torch.randn(shape))
    optimiser = torch.optim.Adam([theta], lr=0.1)

    def distance(z):
        return (z - goal.repeat_interleave(len(z) // len(goal), dim=0)).square().flatten(1).sum(dim=1)

    def now():
        solved = layer.solve(theta)
        return distance(solved[0] if isinstance(solved, tuple) else solved).mean().item()

    before = now()
    for _ in range(steps):
        output = layer(theta)
        if isinstance(output, tuple):
            loss = score_function_loss(distance(output[0]), output[1], nb_samples=16, baseline="leave_one_out").mean()
        else:
            loss = distance(output).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return before, now()


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_parameters_learn_the_right_solution(estimator, problem):
    solver, shape = PROBLEMS[problem]
    before, after = learn(
        MAPLayer(solver, ESTIMATORS[estimator](GumbelNoiseDistribution())), shape, goals(solver, shape)
    )
    assert before > 1.5
    assert after <= 0.5


@pytest.mark.parametrize("estimator", ["aimle forward", "aimle central", "imle"])
def test_a_solver_that_minimises_learns_costs(estimator):
    def solver(costs):
        return shortest_path(costs.clamp(min=0), neighbours=8)

    options = {"noise_distribution": SumOfGammaNoiseDistribution(k=5), "_is_minimization": True}
    if estimator == "imle":
        layer = imle(target_distribution=TargetDistribution(beta=10.0), **options)
    else:
        layer = aimle(target_distribution=adaptive(), symmetric_perturbation=estimator == "aimle central", **options)
    layer = MAPLayer(solver, layer)
    goal = goals(lambda theta: shortest_path(theta.exp(), neighbours=8), (4, 5, 5))

    theta = torch.nn.Parameter(1 + 0.1 * torch.randn(4, 5, 5))
    optimiser = torch.optim.Adam([theta], lr=0.1)
    before = (layer.eval()(theta) - goal).abs().sum().item()
    layer.train()
    for _ in range(STEPS):
        loss = (layer(theta) - goal).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert before > 8
    assert (layer.eval()(theta) - goal).abs().sum() <= 2


def test_a_network_learns_to_read_the_right_solution_off_its_input():
    """The gradient that arrives at theta goes on to the weights below, and to those above."""
    inputs = torch.randn(256, 8)
    mixing = torch.randn(8, 8)
    labels = (select_three(inputs @ mixing) * torch.linspace(-1, 1, 8)).sum(dim=1)
    below, above = torch.nn.Linear(8, 8), torch.nn.Linear(8, 1)
    layer = MAPLayer(
        select_three,
        aimle(
            target_distribution=adaptive(),
            noise_distribution=SumOfGammaNoiseDistribution(k=3),
            symmetric_perturbation=True,
        ),
    )

    def loss():
        return (above(layer(below(inputs))).squeeze(1) - labels).square().mean()

    optimiser = torch.optim.Adam([*below.parameters(), *above.parameters()], lr=0.03)
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    layer.eval()
    assert loss() < 0.5 * labels.var()


def test_beta_settles_where_gradients_have_the_wanted_density():
    target = AdaptiveTargetDistribution(initial_beta=0.0, beta_update_step=1e-2, target_norm=1.5)
    layer = aimle(target_distribution=target, noise_distribution=GumbelNoiseDistribution())(select_three)
    theta = torch.randn(16, 10, requires_grad=True)
    seen = []
    for _ in range(400):
        layer(theta).backward(torch.randn(16, 10))
        seen.append(target.grad_norm)
    assert target.beta > 0.05
    assert sum(seen[-200:]) / 200 == pytest.approx(1.5, rel=0.1)
