"""Modules made on the device "meta" and filled later, as large models are: no number may be left-over memory."""

import math

import pytest
import torch

from aaai23.l2x.model import Explainer, Predictor, Selector
from aaai23.nri.networks import MLPEncoder
from aaai23.nri.score import EmaBaseline

VECTORS = torch.arange(24.0).view(4, 6)
MODULES = {
    "Explainer": lambda: Explainer(Selector(VECTORS), torch.nn.Identity(), Predictor(6), select_k=1),
    "EmaBaseline": lambda: EmaBaseline(0.9),
    "MLPEncoder": lambda: MLPEncoder(10, hidden=4),
}


def deferred(build):
    with torch.device("meta"):
        module = build()
    module.to_empty(device="cpu")
    for value in (*module.parameters(), *module.buffers()):
        value.data.fill_(math.nan if value.is_floating_point() else -1)  # as memory may have been left
    return module.apply(lambda part: part.reset_parameters() if hasattr(part, "reset_parameters") else None)


@pytest.mark.parametrize("name", MODULES)
def test_every_buffer_comes_back_as_it_was_made(name):
    found, expected = deferred(MODULES[name]), MODULES[name]()
    assert dict(expected.named_buffers())
    for buffer, value in expected.named_buffers():
        assert torch.equal(found.get_buffer(buffer), value), buffer
    assert all(parameter.isfinite().all() for parameter in found.parameters())


def test_the_word_vectors_that_were_given_are_copied_not_shared():
    model = deferred(MODULES["Explainer"])
    model.selector.embedding.zero_()
    assert VECTORS.any()


def test_the_weights_of_learning_to_explain_start_as_published():
    for name, parameter in deferred(MODULES["Explainer"]).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name  # torch's own start is not zero
        else:
            bound = (2 * 6 / (parameter[0].numel() + parameter[:, 0].numel())) ** 0.5
            assert 0.8 * bound < parameter.abs().max() <= bound, name
