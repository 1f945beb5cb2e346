"""The training step of Learning to Explain: against its floor, and packed reviews against padded ones."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from aaai23.l2x import fast, model
from aaai23.l2x.config import L2XConfig
from aaai23.l2x.model import Explainer, Predictor, squared_error
from aaai23.methods import METHODS
from benchmarks.measure import Repeat, Row, compare, training_step
from benchmarks.memory import peak_of_step
from imle.structures import k_subsets

BATCH, LENGTH, MEAN, K, WORDS = 40, 350, 130, 10, 20_000


def batches(device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield word ids `[B, T]` of reviews of 130 words on average, and ratings `[B]`: a new batch each time.

    No two batches of a training run have the same number of words; what is compiled or kept for one number does not
    pay. Words are as frequent as in a text, by Zipf's law.
    """
    generator = torch.Generator().manual_seed(0)
    frequencies = 1 / torch.arange(1.0, WORDS)
    while True:
        tokens = 1 + torch.multinomial(frequencies, BATCH * LENGTH, replacement=True, generator=generator)
        tokens = tokens.view(BATCH, LENGTH)
        lengths = torch.randint(20, 2 * MEAN - 20, (BATCH, 1), generator=generator)
        tokens[torch.arange(LENGTH) < LENGTH - lengths] = 0
        yield tokens.to(device), torch.rand(BATCH, generator=generator).to(device)


def explainer(
    layer: torch.nn.Module, device: torch.device, selector: type[model.Selector] = fast.Selector
) -> Explainer:
    """Return the networks around a layer, the same weights each time."""
    torch.manual_seed(0)
    embedding = torch.randn(WORDS, 200)
    embedding[0] = 0
    return Explainer(selector(embedding), layer, Predictor(200), K).to(device).train()


def central_aimle() -> torch.nn.Module:
    """Return the layer of the mission's command."""
    settings = L2XConfig(
        noise="gumbel",
        theta_noise_temperature=1.0,
        target_noise_temperature=1.0,
        target="adaptive",
        symmetric_perturbation=True,
        perturbation_size=0.0,
    )
    return METHODS["aimle"](k_subsets(K), settings)


def run(device: torch.device) -> list[Row]:
    """Measure the step at the mission's command."""
    step = training_step_of_the_paper(device)
    floor = _step(explainer(Repeat(1), device), device)
    rows = [
        compare(
            "L2X step, central, S=1",
            step,
            "floor",
            floor,
            device,
            target=1.10,
            per_call=BATCH,
            unit="reviews",
            note=peak_of_step("l2x", device),
        )
    ]
    if device.type == "cpu":
        rows.append(_packing(device))
    return rows


def training_step_of_the_paper(device: torch.device, replay: bool = True) -> Callable[[], object]:
    """Return the step that the mission's command takes."""
    return _step(explainer(central_aimle(), device), device, replay)


def _packing(device: torch.device) -> Row:
    packed = explainer(central_aimle(), device)
    padded = explainer(central_aimle(), device, model.Selector)
    return compare(
        "L2X step, packed reviews",
        _step(packed, device),
        "padded",
        _step(padded, device),
        device,
        target=0.5,
    )


def _step(model: Explainer, device: torch.device, replay: bool = True) -> Callable[[], object]:
    reviews = batches(device)
    step = training_step(model, lambda tokens, ratings: squared_error(model(tokens), ratings), replay)
    return lambda: step(*next(reviews))
