"""Neural Relational Inference written down plainly: the yardstick of `aaai23.nri.model`, in results and in speed.

Every edge goes through every layer, neighbours are gathered by products with one-hot matrices, and every start point
rolls out every step. The modules have the names and shapes of the fast ones, so that one `state_dict` fits both.

Reference: T. Kipf, E. Fetaya, K.-C. Wang, M. Welling, R. Zemel, *Neural Relational Inference for Interacting
Systems*, ICML 2018.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def one_hot_edges(vertices: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the receivers and the senders of the directed edges as one-hot rows, `[E, n]` each."""
    off_diagonal = torch.ones(vertices, vertices) - torch.eye(vertices)
    receivers, senders = torch.where(off_diagonal > 0)
    identity = torch.eye(vertices, dtype=like.dtype, device=like.device)
    return identity[receivers.to(like.device)], identity[senders.to(like.device)]


class PlainMLP(nn.Module):
    """Two dense layers with ELU, then batch norm over all rows."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(n_in, n_hidden)
        self.fc2 = nn.Linear(n_hidden, n_out)
        self.bn = nn.BatchNorm1d(n_out)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, rows, n_in]` to `[B, rows, n_out]`."""
        x = F.elu(self.fc1(x))
        x = F.dropout(x, self.dropout, self.training)
        x = F.elu(self.fc2(x))
        rows = x.reshape(x.shape[0] * x.shape[1], -1)
        return self.bn(rows).reshape(x.shape[0], x.shape[1], -1)


class PlainEncoder(nn.Module):
    """The MLP encoder: `[B, n, T, dims]` to one logit per directed edge, `[B, E]`."""

    def __init__(self, n_in: int, hidden: int = 256, dropout: float = 0.0, factor: bool = True):
        super().__init__()
        self.factor = factor
        self.mlp1 = PlainMLP(n_in, hidden, hidden, dropout)
        self.mlp2 = PlainMLP(2 * hidden, hidden, hidden, dropout)
        self.mlp3 = PlainMLP(hidden, hidden, hidden, dropout)
        self.mlp4 = PlainMLP((3 if factor else 2) * hidden, hidden, hidden, dropout)
        self.fc_out = nn.Linear(hidden, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits `[B, E]`."""
        receivers, senders = one_hot_edges(inputs.shape[1], inputs)
        x = self.mlp1(inputs.reshape(inputs.shape[0], inputs.shape[1], -1))
        x = self.mlp2(torch.cat([senders @ x, receivers @ x], dim=-1))
        skip = x
        if self.factor:
            x = receivers.T @ x / inputs.shape[1]
            x = self.mlp3(x)
            x = torch.cat([senders @ x, receivers @ x], dim=-1)
        else:
            x = self.mlp3(x)
        x = self.mlp4(torch.cat([x, skip], dim=-1))
        return self.fc_out(x).squeeze(-1)


class PlainDecoder(nn.Module):
    """The interaction MLP decoder: positions `[B, n, T, dims]` and edges `[B, E, types]` to predictions."""

    def __init__(
        self,
        dims: int = 2,
        edge_types: int = 2,
        message_hidden: int = 256,
        message_out: int = 256,
        hidden: int = 256,
        dropout: float = 0.0,
        skip_first: bool = False,
    ):
        super().__init__()
        self.msg_fc1 = nn.ModuleList([nn.Linear(2 * dims, message_hidden) for _ in range(edge_types)])
        self.msg_fc2 = nn.ModuleList([nn.Linear(message_hidden, message_out) for _ in range(edge_types)])
        self.out_fc1 = nn.Linear(dims + message_out, hidden)
        self.out_fc2 = nn.Linear(hidden, hidden)
        self.out_fc3 = nn.Linear(hidden, dims)
        self.dropout = dropout
        self.skip_first = skip_first

    def step(self, x: Tensor, weights: Tensor) -> Tensor:
        """Move `[B, starts, n, dims]` by one frame; `weights` `[B, starts, E, types]`."""
        receivers, senders = one_hot_edges(x.shape[2], x)
        pairs = torch.cat([senders @ x, receivers @ x], dim=-1)
        messages = torch.zeros((*pairs.shape[:-1], self.out_fc1.in_features - x.shape[-1])).to(pairs)
        for i in range(1 if self.skip_first else 0, len(self.msg_fc1)):
            message = F.relu(self.msg_fc1[i](pairs))
            message = F.dropout(message, self.dropout, self.training)
            message = F.relu(self.msg_fc2[i](message))
            messages = messages + message * weights[..., i : i + 1]
        gathered = (messages.transpose(-2, -1) @ receivers).transpose(-2, -1)
        hidden = torch.cat([x, gathered], dim=-1)
        hidden = F.dropout(F.relu(self.out_fc1(hidden)), self.dropout, self.training)
        hidden = F.dropout(F.relu(self.out_fc2(hidden)), self.dropout, self.training)
        return x + self.out_fc3(hidden)

    def forward(self, inputs: Tensor, weights: Tensor, prediction_steps: int) -> Tensor:
        """Return predictions of frames 1..T-1, `[B, n, T-1, dims]`."""
        frames = inputs.transpose(1, 2)
        x = frames[:, ::prediction_steps]
        weights = weights.unsqueeze(1).expand(-1, x.shape[1], -1, -1)
        rollout = []
        for _ in range(prediction_steps):
            x = self.step(x, weights)
            rollout.append(x)
        predictions = torch.stack(rollout, dim=2).flatten(1, 2)
        return predictions[:, : frames.shape[1] - 1].transpose(1, 2)
