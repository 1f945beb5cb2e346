"""The discrete VAE of `aaai23.dvae.model` with dense layers that are faster on a CPU."""

from torch import Tensor, nn

from aaai23.dvae import model
from aaai23.speed.dense import dense


class Linear(nn.Linear):
    """`torch.nn.Linear`, but for speed and float rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """Map `[..., in_features]` to `[..., out_features]`."""
        return dense(input, self.weight, self.bias)


class DiscreteVAE(model.DiscreteVAE):
    """The discrete VAE; parameters, their names and their start are the same."""

    linear = Linear
