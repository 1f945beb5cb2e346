"""Learning to Explain's selector, written as plainly as possible: what tests and benchmarks compare with."""

import torch
import torch.nn.functional as F
from torch import Tensor

from aaai23.l2x.model import Selector


def plain_scores(selector: Selector, tokens: Tensor) -> Tensor:
    """Scores `[B, T]` from convolutions over all T positions, padding included."""
    words = F.embedding(tokens, selector.embedding).mT
    first = torch.relu(selector.conv_in(words))
    local = first
    for convolution in selector.conv_local:
        local = torch.relu(convolution(local))
    whole = torch.relu(selector.dense_global(first.max(dim=2).values))
    features = torch.cat([whole[:, :, None].expand_as(local), local], dim=1).mT
    hidden = torch.relu(selector.hidden(selector.dropout(features)))
    return selector.score(hidden)[:, :, 0]
