"""The networks of `aaai23.nri.networks`, made fast: the same numbers, sooner.

* A dense layer on [sender, receiver] is a sum of two layers on vertices: W [x_s; x_r] = W_s x_s + W_r x_r.
* A start point is rolled out only as far as its predictions are kept.
* On a CPU, a message of weight 0 is never back-propagated, and is computed only for the gradient of its weight.
* On a CPU, dense layers go to oneDNN, see `aaai23.speed.dense`.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from aaai23.nri import networks
from aaai23.nri.networks import directed_edges
from aaai23.speed.dense import dense, dense_weight_gradient, relu_backward

_BLOCK = 2048  # edges at a time: 2 MB for each tensor of 256 numbers an edge


class MLPEncoder(networks.MLPEncoder):
    """The encoder, whose layers on pairs of vertices are sums of layers on vertices."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of directed edges `[B, E]` for positions `[B, n, T, dims]`."""
        n = inputs.shape[1]
        edges = skip = _on_pairs(self.mlp2, _on_rows(self.mlp1, inputs.flatten(2)))
        if self.factor:
            incoming = edges.unflatten(1, (n, n - 1)).sum(2) / n
            edges = _on_pairs(self.mlp4, _on_rows(self.mlp3, incoming), skip)
        else:
            edges = _on_rows(self.mlp4, torch.cat([_on_rows(self.mlp3, edges), skip], dim=-1))
        return self.fc_out(edges).squeeze(-1)


def _on_rows(mlp: networks.MLP, x: Tensor) -> Tensor:
    """Map rows `[B, rows, n_in]` to `[B, rows, n_out]`."""
    return _second_half(mlp, dense(x, mlp.fc1.weight, mlp.fc1.bias))


def _on_pairs(mlp: networks.MLP, x: Tensor, skip: Tensor | None = None) -> Tensor:
    """Map [sender, receiver, skip] to `[B, E, n_out]`: `x` `[B, n, h]` of vertices, `skip` `[B, E, k]` of edges."""
    width = x.shape[-1]
    send, receive, rest = mlp.fc1.weight.split((width, width, mlp.fc1.in_features - 2 * width), dim=1)
    pairs = _pair_sum(dense(x, send), dense(x, receive, mlp.fc1.bias))
    return _second_half(mlp, pairs if skip is None else pairs + dense(skip, rest))


def _second_half(mlp: networks.MLP, x: Tensor) -> Tensor:
    x = F.dropout(_elu(x), mlp.dropout, mlp.training)
    x = _elu(dense(x, mlp.fc2.weight, mlp.fc2.bias))
    return mlp.bn(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _pair_sum(send: Tensor, receive: Tensor) -> Tensor:
    """Return send[s] + receive[r] for all directed edges, two `[B, n, h]` to `[B, E, h]`."""
    n = send.shape[1]
    grid = (receive.unsqueeze(2) + send.unsqueeze(1)).flatten(1, 2)
    # From the second entry on, n rows of n are n - 1 rows of n + 1 that end on the diagonal.
    return grid[:, 1:].unflatten(1, (n - 1, n + 1))[:, :, :n].flatten(1, 2)


def _elu(x: Tensor) -> Tensor:
    """Return ELU(x), in place where the gradient, which is then found from the result, has the digits for it."""
    return F.elu(x, inplace=x.dtype == torch.float32)


class MLPDecoder(networks.MLPDecoder):
    """The decoder. Exact zeros and ones among its edges save work, on a CPU and without dropout."""

    def roll_out(self, x: Tensor, weights: Tensor, frames: int, steps: int) -> Tensor:
        """Return predictions `[R, n, frames, dims]`, from each start point no more than are kept."""
        predicted: list[Tensor] = []
        kept, repeated = 0, weights
        for step in range(min(steps, frames)):
            # start i predicts frame i * steps + step
            before, kept = kept, -(-(frames - step) // steps)
            if kept != before:
                repeated = weights.repeat_interleave(kept, dim=1)
            x = self.step(x[:, :kept].flatten(0, 1), repeated).unflatten(0, (-1, kept))
            predicted.append(x)
        return torch.stack([predicted[t % steps][:, t // steps] for t in range(frames)], dim=2)

    def step(self, x: Tensor, weights: Tensor) -> Tensor:
        """Move positions `[R, n, dims]` by one frame, along edges weighted `[2, R, E]`."""
        from_position, from_messages = self.out_fc1.weight.tensor_split((x.shape[-1],), dim=1)
        messages = dense(self.messages(x, weights), from_messages)
        hidden = F.linear(x, from_position, self.out_fc1.bias) + messages
        hidden = F.dropout(hidden.relu_(), self.dropout, self.training)
        hidden = dense(hidden, self.out_fc2.weight, self.out_fc2.bias)
        hidden = F.dropout(hidden.relu_(), self.dropout, self.training)
        return x + self.out_fc3(hidden)

    def messages(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the sum of the messages that each vertex receives, `[R, n, hidden]`."""
        skip_zeros = x.device.type == "cpu" and not (self.training and self.dropout > 0)
        messages = [(self._some if skip_zeros else self._all)(i, x, weights[i]) for i in self.types]
        return sum(messages[1:], messages[0])

    def _first_layer(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what senders and receivers add to the first layer of the messages of type `i`, `[R, n, h]` each."""
        fc1 = cast(nn.Linear, self.msg_fc1[i])
        from_sender, from_receiver = fc1.weight.chunk(2, dim=1)
        return F.linear(x, from_sender), F.linear(x, from_receiver, fc1.bias)

    def _all(self, i: int, x: Tensor, w: Tensor) -> Tensor:
        """Return the sum of the messages of type `i`, weighted `[R, E]`."""
        n, fc2 = x.shape[1], cast(nn.Linear, self.msg_fc2[i])
        hidden = F.dropout(F.relu(_pair_sum(*self._first_layer(i, x))), self.dropout, self.training)
        message = F.relu(dense(hidden, fc2.weight, fc2.bias))
        return (w.unflatten(1, (n, 1, n - 1)) @ message.unflatten(1, (n, n - 1))).squeeze(2)

    def _some(self, i: int, x: Tensor, w: Tensor) -> Tensor:
        """Return the same from the edges alone whose weight is not 0."""
        (send, receive), fc2 = self._first_layer(i, x), cast(nn.Linear, self.msg_fc2[i])
        # one type for all: autocast does not reach into the backward pass, and has rounded only the first two
        w, weight, bias = (tensor.to(send.dtype) for tensor in (w, fc2.weight, fc2.bias))
        kept = torch.is_grad_enabled()
        active = _active(w, x.shape[1])
        return _Messages.apply(send, receive, w, weight, bias, active, kept and w.requires_grad, kept)


class _Messages(torch.autograd.Function):
    """agg_r = sum_s w_rs relu(W relu(send_s + receive_r) + b), back-propagated only where w is not 0.

    It works through blocks of edges that stay in the processor's cache. Of what lies between send and agg, only the
    messages are kept for the backward pass, and those only if there will be one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        send: Tensor,
        receive: Tensor,
        w: Tensor,
        weight: Tensor,
        bias: Tensor,
        active: Tensor,
        every: bool,
        kept: bool,
    ) -> Tensor:
        """Return `[R, n, m]` from `[R, n, h]` twice and `[R, E]`.

        `active`: where w is not 0, see `_active`; `every`: w will be asked for its gradient; `kept`: anything will be.
        """
        (graphs, n), edges = send.shape[:2], w.shape[1]
        message = send.new_empty(((graphs * edges if every else active.shape[1]) if kept else 0, weight.shape[0]))
        gathered = send.new_zeros(graphs * n, weight.shape[0])

        def finish(hidden: Tensor, block: slice) -> Tensor:
            linear = dense(hidden, weight, bias)
            return torch.clamp_min(linear, 0, out=message[block]) if kept else linear.relu_()

        if every:
            for first, last in _blocks(graphs, per=edges):
                hidden = _pair_sum(send[first:last], receive[first:last]).relu_().flatten(0, 1)
                messages = finish(hidden, slice(first * edges, last * edges)).unflatten(0, (-1, n - 1))
                gathered[first * n : last * n] = (w[first:last].reshape(-1, 1, n - 1) @ messages).squeeze(1)
        else:
            for first, last in _blocks(active.shape[1]):
                some, receivers, senders = active[:, first:last]
                messages = finish(_hidden(send, receive, receivers, senders), slice(first, last))
                messages = messages * _column(w, some) if kept else messages.mul_(_column(w, some))
                gathered.index_add_(0, receivers, messages)
        ctx.save_for_backward(send, receive, w, weight, message, active)
        ctx.every = every
        return gathered.view(graphs, n, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the arguments of `forward`."""
        send, receive, w, weight, message, active = ctx.saved_tensors
        n = send.shape[1]
        grad = grad.flatten(0, 1)
        grad_w = w.new_empty(w.numel() // (n - 1), n - 1) if ctx.every else None
        if grad_w is not None:
            for first, last in _blocks(len(grad), per=n - 1):
                messages = message[first * (n - 1) : last * (n - 1)].unflatten(0, (-1, n - 1))
                grad_w[first:last] = (messages @ grad[first:last].unsqueeze(2)).squeeze(2)
        grad_send, grad_receive = torch.zeros_like(send.flatten(0, 1)), torch.zeros_like(receive.flatten(0, 1))
        # sums over many blocks: in bfloat16 they would lose what each adds
        exact = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=exact)
        grad_bias = weight.new_zeros(len(weight), dtype=exact)
        for first, last in _blocks(active.shape[1]):
            some, receivers, senders = active[:, first:last]
            messages = message.index_select(0, some) if ctx.every else message[first:last]
            grad_message = grad.index_select(0, receivers).mul_(_column(w, some))
            grad_message = relu_backward(grad_message, messages, 0)
            hidden = _hidden(send, receive, receivers, senders)
            grad_hidden = relu_backward(dense(grad_message, weight.T), hidden, 0)
            grad_send.index_add_(0, senders, grad_hidden)
            grad_receive.index_add_(0, receivers, grad_hidden)
            grad_weight += dense_weight_gradient(hidden, grad_message)
            grad_bias += grad_message.sum(0)
        return (
            grad_send.view_as(send),
            grad_receive.view_as(receive),
            None if grad_w is None else grad_w.view_as(w),
            grad_weight.to(weight.dtype),
            grad_bias.to(weight.dtype),
            None,
            None,
            None,
        )


def _blocks(total: int, per: int = 1) -> list[tuple[int, int]]:
    """Split 0..total into ranges of about `_BLOCK` edges, where each number stands for `per` of them.

    A range has a multiple of 16 numbers, so that `dense` can divide it: with many vertices it is larger than asked.
    """
    size = max(_BLOCK // per // 16, 1) * 16
    return [(first, min(first + size, total)) for first in range(0, total, size)]


def _active(w: Tensor, vertices: int) -> Tensor:
    """Return where w `[R, E]` is not 0, `[3, K]`: the entry of w, its receiver and its sender, all counted on."""
    entries = w.detach().flatten().nonzero().squeeze(1)
    graph, edge = entries // w.shape[1], entries % w.shape[1]
    receivers, senders = (vertices * graph + end[edge] for end in directed_edges(vertices))
    return torch.stack((entries, receivers, senders))


def _column(w: Tensor, entries: Tensor) -> Tensor:
    """Return those entries of w, `[K, 1]`."""
    return w.flatten().index_select(0, entries).unsqueeze(1)


def _hidden(send: Tensor, receive: Tensor, receivers: Tensor, senders: Tensor) -> Tensor:
    """Return relu(send_s + receive_r) of the given edges, `[K, h]`."""
    hidden = send.flatten(0, 1).index_select(0, senders)
    return hidden.add_(receive.flatten(0, 1).index_select(0, receivers)).relu_()
