"""The plain encoder and decoder against loops, and the fast ones against the plain: results, gradients, work done."""

import pytest
import torch
import torch.nn.functional as F

from aaai23.errors import UsageError
from aaai23.nri import fast as fast_networks
from aaai23.nri import networks as plain_networks
from aaai23.nri.networks import MLPDecoder, MLPEncoder, directed_edges, symmetrise, to_directed
from aaai23.speed.dense import dense, dense_weight_gradient

TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.float64: {"atol": 1e-11, "rtol": 1e-11}}


def assert_same(got, expected):
    """Compare within 1e-5 (float32) or 1e-11 (float64) of the largest entry."""
    scale = expected.detach().abs().max().clamp(min=1e-30)
    torch.testing.assert_close(got / scale, expected / scale, **TOLERANCE[expected.dtype])


def assert_same_gradients(got, expected):
    grads = {name: p.grad for name, p in expected.named_parameters()}
    assert set(grads) == {name for name, _ in got.named_parameters()}
    for name, p in got.named_parameters():
        if grads[name] is None:
            assert p.grad is None, name
        else:
            assert_same(p.grad, grads[name])


def same_start(name, dtype, *args, **options):
    """Return the fast and the plain networks as the same seed makes them."""
    networks = []
    for kind in (getattr(fast_networks, name), getattr(plain_networks, name)):
        torch.manual_seed(3)
        networks.append(kind(*args, **options).to(dtype))
    starts = [network.state_dict() for network in networks]
    assert list(starts[0]) == list(starts[1]) and all(torch.equal(starts[0][key], starts[1][key]) for key in starts[0])
    return networks


def encoders(dtype=torch.float64, n_in=6, **options):
    return same_start("MLPEncoder", dtype, n_in, hidden=16, **options)


def decoders(dtype=torch.float64, hidden=12, **options):
    return same_start("MLPDecoder", dtype, hidden=hidden, **options)


def random_edges(kind, *shape, dtype=torch.float64):
    z = torch.rand(*shape, dtype=dtype)
    return (z if kind == "soft" else (z < 0.3).to(dtype)).requires_grad_()


# Edges


def test_directed_edges_are_the_rows_of_a_matrix_without_its_diagonal():
    receivers, senders = directed_edges(5)
    expected = torch.where(~torch.eye(5, dtype=torch.bool))
    assert torch.equal(receivers, expected[0]) and torch.equal(senders, expected[1])


@pytest.mark.parametrize("n", [2, 3, 6])
def test_to_directed_reads_a_symmetric_matrix(n):
    u = n * (n - 1) // 2
    undirected = torch.randn(2, u)
    low, high = torch.triu_indices(n, n, 1)
    matrix = torch.zeros(2, n, n)
    matrix[:, low, high] = matrix[:, high, low] = undirected
    receivers, senders = directed_edges(n)
    assert torch.equal(to_directed(undirected, n), matrix[:, receivers, senders])


def test_symmetrise_averages_both_directions():
    matrix = torch.randn(3, 6, 6)
    receivers, senders = directed_edges(6)
    low, high = torch.triu_indices(6, 6, 1)
    expected = ((matrix + matrix.mT) / 2)[:, low, high]
    torch.testing.assert_close(symmetrise(matrix[:, receivers, senders], 6), expected)


def test_symmetrise_undoes_to_directed():
    undirected = torch.randn(2, 10)
    assert torch.equal(symmetrise(to_directed(undirected, 5), 5), undirected)


# Encoder


@pytest.mark.parametrize("factor", [True, False])
def test_the_plain_encoder_is_a_loop_over_edges(factor):
    encoder = MLPEncoder(6, hidden=4, factor=factor).double().eval()
    x = torch.randn(2, 3, 3, 2, dtype=torch.float64)
    for logits, graph in zip(encoder(x), x):

        def layer(name, *parts):
            return getattr(encoder, name)(torch.cat(parts)[None, None])[0, 0]

        nodes = [layer("mlp1", vertex.flatten()) for vertex in graph]
        pairs = [(r, s) for r in range(3) for s in range(3) if r != s]
        edges = {(r, s): layer("mlp2", nodes[s], nodes[r]) for r, s in pairs}
        nodes = [layer("mlp3", sum(edges[r, s] for s in range(3) if s != r) / 3) for r in range(3)]
        for logit, (r, s) in zip(logits, pairs, strict=True):
            parts = (nodes[s], nodes[r]) if factor else (layer("mlp3", edges[r, s]),)
            assert_same(logit, encoder.fc_out(layer("mlp4", *parts, edges[r, s]))[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [True, False])
def test_encoder_equals_the_plain_one_in_training(factor, dtype):
    fast, plain = encoders(dtype, factor=factor)
    x = torch.randn(7, 5, 3, 2, dtype=dtype)
    direction = torch.randn(7, 20, dtype=dtype)
    for _ in range(2):
        got, expected = fast(x), plain(x)
        assert_same(got, expected)
        (got * direction).sum().backward()
        (expected * direction).sum().backward()
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(fast.get_buffer(name), buffer, **TOLERANCE[dtype])
    if dtype == torch.float64:  # the gradient of a bias before batch norm is rounding alone
        for name, p in fast.named_parameters():
            torch.testing.assert_close(p.grad, plain.get_parameter(name).grad, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("factor", [True, False])
def test_encoder_equals_the_plain_one_in_evaluation(factor):
    fast, plain = encoders(factor=factor)
    for _ in range(3):
        fast(torch.randn(8, 5, 3, 2, dtype=torch.float64))
    plain.load_state_dict(fast.state_dict())
    fast.eval(), plain.eval()
    x = torch.randn(4, 5, 3, 2, dtype=torch.float64)
    assert_same(fast(x), plain(x))
    assert_same(fast(x)[:1], fast(x[:1]))
    assert (fast.mlp1.bn.running_mean != 0).any()


def test_encoder_passes_gradients_to_its_input():
    fast, _ = encoders()
    fast.eval()
    x = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fast, x)


def test_encoder_treats_vertices_alike():
    fast, _ = encoders()
    fast.eval()
    order = torch.randperm(5)
    x = torch.randn(2, 5, 3, 2, dtype=torch.float64)
    receivers, senders = directed_edges(5)
    matrix = torch.zeros(2, 5, 5, dtype=torch.float64)
    matrix[:, receivers, senders] = fast(x)
    assert_same(fast(x[:, order]), matrix[:, order][:, :, order][:, receivers, senders])


def test_encoder_dropout_acts_in_training_only():
    fast, plain = encoders(dropout=0.5)
    x = torch.randn(4, 5, 3, 2, dtype=torch.float64)
    assert not torch.equal(fast(x), fast(x))
    plain.load_state_dict(fast.state_dict())
    fast.eval(), plain.eval()
    assert_same(fast(x), plain(x))


def test_encoder_starts_from_xavier_weights_and_small_biases():
    weights = torch.cat([p.flatten() for name, p in MLPEncoder(20).named_parameters() if name.endswith("fc2.weight")])
    assert weights.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    for module in MLPEncoder(20).modules():
        if isinstance(module, torch.nn.Linear):
            assert (module.bias == 0.1).all()
        if isinstance(module, torch.nn.BatchNorm1d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


# Decoder


@pytest.mark.parametrize("skip_first", [True, False])
def test_a_step_of_the_plain_decoder_is_a_loop_over_edges(skip_first):
    decoder = MLPDecoder(hidden=5, skip_first=skip_first).double()
    x, z = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.rand(2, 6, dtype=torch.float64)
    for predicted, frame, weights in zip(decoder(x, z, 1)[:, :, 0], x[:, :, 0], z):
        of_edge = dict(zip([(r, s) for r in range(3) for s in range(3) if r != s], weights, strict=True))
        for r in range(3):
            received = torch.zeros(5, dtype=torch.float64)
            for s in {0, 1, 2} - {r}:
                for i, weight in ((0, 1 - of_edge[r, s]), (1, of_edge[r, s])):
                    if i or not skip_first:
                        hidden = decoder.msg_fc1[i](torch.cat([frame[s], frame[r]])).relu()
                        received += weight * decoder.msg_fc2[i](hidden).relu()
            hidden = decoder.out_fc1(torch.cat([frame[r], received])).relu()
            assert_same(predicted[r], frame[r] + decoder.out_fc3(decoder.out_fc2(hidden).relu()))


@pytest.mark.parametrize("timesteps, steps", [(10, 9), (10, 10), (10, 1), (7, 3), (2, 1)])
def test_the_plain_decoder_starts_anew_from_the_true_frame_and_else_feeds_on_its_predictions(timesteps, steps):
    decoder = MLPDecoder(hidden=5).double()
    x, z = torch.randn(2, 3, timesteps, 2, dtype=torch.float64), random_edges("soft", 2, 6)
    predicted = decoder(x, z, steps)
    for t in range(timesteps - 1):
        before = x[:, :, t] if t % steps == 0 else predicted[:, :, t - 1]
        assert_same(predicted[:, :, t], decoder(before.unsqueeze(2).expand(-1, -1, 2, -1), z, 1)[:, :, 0])


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("skip_first", [True, False])
@pytest.mark.parametrize("timesteps, steps", [(10, 9), (10, 10), (10, 1), (10, 3), (7, 4), (20, 10), (2, 1), (2, 2)])
def test_decoder_equals_the_plain_one(timesteps, steps, skip_first, kind):
    fast, plain = decoders(skip_first=skip_first)
    x = torch.randn(3, 4, timesteps, 2, dtype=torch.float64)
    z = random_edges(kind, 3, 12)
    direction = torch.randn(3, 4, timesteps - 1, 2, dtype=torch.float64)
    expected = plain(x, z, steps)
    (expected_grad,) = torch.autograd.grad((expected * direction).sum(), z, retain_graph=True)
    (expected * direction).sum().backward(inputs=list(plain.parameters()))
    got = fast(x, z, steps)
    assert got.shape == (3, 4, timesteps - 1, 2)
    assert_same(got, expected)
    (got * direction).sum().backward()
    assert_same(z.grad, expected_grad)
    assert_same_gradients(fast, plain)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_decoder_equals_the_plain_one_at_full_width_in_float32(kind):
    fast, plain = decoders(torch.float32, hidden=256)
    x = torch.randn(4, 10, 10, 2)
    z = random_edges(kind, 4, 90, dtype=torch.float32)
    expected = plain(x, z, 9)
    expected_grads = torch.autograd.grad(expected.square().sum(), [z, *plain.parameters()])
    got = fast(x, z, 9)
    assert_same(got, expected)
    for grad, other in zip(
        torch.autograd.grad(got.square().sum(), [z, *fast.parameters()]), expected_grads, strict=True
    ):
        # Among millions of ReLUs, one at rounding distance from 0 may switch: no bound on single entries.
        assert (grad - other).norm() < 1e-3 * other.norm()


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_decoder_equals_the_plain_one_in_evaluation(kind):
    fast, plain = decoders()
    x, z = torch.randn(3, 4, 6, 2, dtype=torch.float64), random_edges(kind, 3, 12)
    with torch.inference_mode():
        assert_same(fast(x, z, 1), plain(x, z, 1))


def test_parameters_get_their_gradients_when_edges_ask_for_none():
    fast, plain = decoders()
    x, z = torch.randn(3, 4, 6, 2, dtype=torch.float64), random_edges("hard", 3, 12).detach()
    fast(x, z, 5).square().sum().backward()
    plain(x, z, 5).square().sum().backward()
    assert_same_gradients(fast, plain)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_type_without_edges_is_no_special_case(value):
    fast, plain = decoders()
    x = torch.randn(3, 4, 6, 2, dtype=torch.float64)
    for requires_grad in (True, False):
        z = torch.full((3, 12), value, dtype=torch.float64, requires_grad=requires_grad)
        fast.zero_grad(), plain.zero_grad()
        got, expected = fast(x, z, 5), plain(x, z, 5)
        assert_same(got, expected)
        got.sum().backward(), expected.sum().backward()
        assert_same(fast.out_fc1.weight.grad, plain.out_fc1.weight.grad)
        assert (fast.msg_fc2[int(1 - value)].weight.grad == 0).all()


def test_undirected_edges_are_edges_in_both_directions():
    fast, _ = decoders()
    x, z = torch.randn(3, 5, 4, 2, dtype=torch.float64), random_edges("hard", 3, 10)
    assert torch.equal(fast(x, z, 3), fast(x, to_directed(z, 5), 3))


def test_samples_of_an_instance_are_neighbours():
    fast, _ = decoders()
    x, z = torch.randn(2, 5, 4, 2, dtype=torch.float64), random_edges("hard", 6, 10)
    assert_same(fast(x, z, 3), fast(x.repeat_interleave(3, 0), z, 3))
    assert_same(fast(x, z, 3)[4:5], fast(x[1:], z[4:5], 3))


def test_three_dimensions_work_too():
    fast, plain = decoders(dims=3)
    x, z = torch.randn(2, 4, 5, 3, dtype=torch.float64), random_edges("hard", 2, 12)
    assert_same(fast(x, z, 4), plain(x, z, 4))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_all_gradients_pass_gradcheck(kind):
    fast, _ = decoders(hidden=4)
    x = torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    z = random_edges("soft", 2, 6) if kind == "soft" else random_edges("hard", 2, 6).detach()
    assert torch.autograd.gradcheck(lambda x: fast(x, z, 3), x)
    if kind == "soft":
        assert torch.autograd.gradcheck(lambda z: fast(x.detach(), z, 3), z)


def test_decoder_equals_the_plain_one_with_dropout(monkeypatch):
    """In evaluation; and in training, where no message is skipped, with a dropout that drops nothing."""
    fast, plain = decoders(dropout=0.5)
    for mode in (False, True):
        fast.train(mode), plain.train(mode)
        if mode:
            monkeypatch.setattr(F, "dropout", lambda x, p, training: x * (1 + p * training))
        assert_same_decoders(fast, plain)


def assert_same_decoders(fast, plain):
    x, z = torch.randn(3, 4, 6, 2, dtype=torch.float64), random_edges("hard", 3, 12)
    expected = plain(x, z, 3)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), z)
    got = fast(x, z, 3)
    assert_same(got, expected)
    (grad,) = torch.autograd.grad(got.square().sum(), z)
    assert_same(grad, expected_grad)


def test_decoder_dropout_keeps_messages_in_the_mean():
    torch.manual_seed(1)
    decoder = fast_networks.MLPDecoder(hidden=16, dropout=0.3)
    x, z = torch.randn(1, 4, 2, 2), random_edges("hard", 1, 12, dtype=torch.float32).detach()
    draws = decoder(x.expand(4000, -1, -1, -1), z.expand(4000, -1), 1)
    assert draws.std(0).min() > 0
    torch.testing.assert_close(draws.mean(0, keepdim=True), decoder.eval()(x, z, 1), atol=0.05, rtol=0)


def test_away_from_a_cpu_the_networks_wait_for_nothing():
    """On the device "meta", where a number cannot be looked at."""
    x, z = torch.zeros(2, 4, 5, 2, device="meta"), torch.zeros(6, 6, device="meta")
    assert fast_networks.MLPEncoder(10, hidden=4).to("meta")(x).shape == (2, 12)
    assert fast_networks.MLPDecoder(hidden=4).to("meta")(x, z, 3).shape == (6, 4, 4, 2)


# Work done


def count_graph_steps(decoder, timesteps, steps):
    """Return how many graphs the output network moved by a frame, for one instance."""
    moved = []
    handle = decoder.out_fc3.register_forward_hook(lambda module, args, output: moved.append(output.shape[0]))
    decoder(torch.randn(1, 4, timesteps, 2, dtype=torch.float64), random_edges("hard", 1, 12), steps)
    handle.remove()
    return sum(moved)


@pytest.mark.parametrize("timesteps, steps", [(10, 9), (10, 10), (20, 10), (20, 7), (10, 1), (2, 2), (11, 4)])
def test_no_prediction_is_computed_that_is_cut_off(timesteps, steps):
    fast, _ = decoders()
    assert count_graph_steps(fast, timesteps, steps) == timesteps - 1


@pytest.fixture
def recorded(monkeypatch):
    """A decoder, and how many rows go through its second message layers, forward and backward."""
    rows = []
    decoder, _ = decoders()
    layers = {layer.weight.data_ptr() for layer in decoder.msg_fc2}

    def recording(x, weight, bias=None):
        if weight.data_ptr() in layers:
            rows.append(x.numel() // x.shape[-1])
        return dense(x, weight, bias)

    monkeypatch.setattr(fast_networks, "dense", recording)
    return decoder, rows


def test_hard_edges_cost_one_message_each_in_evaluation(recorded):
    fast, rows = recorded
    z = random_edges("hard", 3, 12)
    with torch.inference_mode():
        fast(torch.randn(3, 4, 6, 2, dtype=torch.float64), z, 5)
    edges = int(z.sum())
    assert 0 < edges < 36
    assert rows == [36 - edges, edges] * 5


def test_hard_edges_are_back_propagated_through_their_own_type_only(recorded):
    fast, rows = recorded
    z = random_edges("hard", 3, 12)
    prediction = fast(torch.randn(3, 4, 6, 2, dtype=torch.float64), z, 5)
    assert rows == [36, 36] * 5
    rows.clear()
    prediction.sum().backward()
    assert sum(rows) == 36 * 5


@pytest.mark.parametrize("onednn", [True, False])
def test_dense_is_linear(monkeypatch, onednn):
    monkeypatch.setattr("aaai23.speed.dense._ONEDNN_PAYS", onednn)
    for rows in (0, 1, 16, 31, 48):
        x, weight, bias = torch.randn(rows, 1, 6).double(), torch.randn(3, 6).double(), torch.randn(3).double()
        torch.testing.assert_close(dense(x, weight, bias), F.linear(x, weight, bias))
        x, grad = torch.randn(rows, 6).double(), torch.randn(rows, 3).double()
        torch.testing.assert_close(dense_weight_gradient(x, grad), grad.T @ x)


# Contract


def test_modules_have_the_published_names_and_shapes():
    encoder = {name: tuple(p.shape) for name, p in MLPEncoder(20).named_parameters() if name.endswith("weight")}
    assert {name: shape for name, shape in encoder.items() if ".bn." not in name} == {
        "mlp1.fc1.weight": (256, 20),
        "mlp1.fc2.weight": (256, 256),
        "mlp2.fc1.weight": (256, 512),
        "mlp2.fc2.weight": (256, 256),
        "mlp3.fc1.weight": (256, 256),
        "mlp3.fc2.weight": (256, 256),
        "mlp4.fc1.weight": (256, 768),
        "mlp4.fc2.weight": (256, 256),
        "fc_out.weight": (1, 256),
    }
    assert MLPEncoder(20, factor=False).mlp4.fc1.in_features == 512
    decoder = {name: tuple(p.shape) for name, p in MLPDecoder().named_parameters() if name.endswith("weight")}
    assert decoder == {
        "msg_fc1.0.weight": (256, 4),
        "msg_fc1.1.weight": (256, 4),
        "msg_fc2.0.weight": (256, 256),
        "msg_fc2.1.weight": (256, 256),
        "out_fc1.weight": (256, 258),
        "out_fc2.weight": (256, 256),
        "out_fc3.weight": (2, 256),
    }
    assert [name for name, _ in MLPEncoder(20).mlp1.named_children()] == ["fc1", "fc2", "bn"]


def test_a_training_step_repeats_exactly():
    fast, _ = decoders(torch.float32)
    x, z = torch.randn(8, 6, 5, 2), random_edges("hard", 8, 30, dtype=torch.float32)
    grads = []
    for _ in range(2):
        fast.zero_grad()
        fast(x, z, 4).square().sum().backward()
        grads.append([p.grad.clone() for p in fast.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    "edges, steps, message",
    [
        (torch.zeros(2, 6), 0, "prediction_steps is 0: choose 1 to 5"),
        (torch.zeros(2, 6), 6, "prediction_steps is 6: choose 1 to 5"),
        (torch.zeros(2, 7), 4, "6 undirected or 12 directed edges"),
        (torch.zeros(3, 6), 4, "whole samples"),
        (torch.zeros(2, 6, 2), 4, "6 undirected or 12 directed edges"),
        (torch.zeros(6), 4, "6 undirected or 12 directed edges"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(edges, steps, message):
    with pytest.raises(UsageError, match=message):
        MLPDecoder()(torch.zeros(2, 4, 5, 2), edges, steps)
