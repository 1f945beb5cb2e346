"""The encoder and the decoder of Neural Relational Inference, written for speed on complete graphs.

n vertices have U = n(n-1)/2 undirected and E = n(n-1) directed edges. Undirected edges come in the order of
`torch.triu_indices(n, n, 1)`; directed ones row by row of an n x n matrix without its diagonal, where the row is the
receiver and the column the sender, so the n - 1 edges into one vertex lie next to each other.

What makes it fast, with the results of a plain implementation:

* a dense layer on [sender, receiver] is the sum of two dense layers on vertices, W [x_s; x_r] = W_s x_s + W_r x_r;
* a start point whose predictions are cut off is not rolled out;
* a message whose weight is zero is not computed where nothing needs it, and is never back-propagated.

Reference: T. Kipf, E. Fetaya, K.-C. Wang, M. Welling, R. Zemel, *Neural Relational Inference for Interacting
Systems*, ICML 2018.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from aaai23.errors import UsageError

GRAPHS_AT_ONCE = 64  # in evaluation: few enough for the messages to stay in the processor's cache


def directed_edges(vertices: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Return the receivers and the senders of all directed edges, `[E]` each."""
    off_diagonal = ~torch.eye(vertices, dtype=torch.bool, device=device)
    # A fixed size, unlike that of nonzero(), spares a GPU the wait for the host.
    index = torch.arange(vertices * vertices, device=device).view(vertices, vertices)
    index = _off_diagonal(index[None, :, :, None]).flatten()
    del off_diagonal
    return index // vertices, index % vertices
