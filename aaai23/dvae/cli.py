"""The command line of the discrete VAE."""

from __future__ import annotations

import functools
import logging

from aaai23.dvae.config import VAEConfig
from aaai23.errors import UsageError
from aaai23.harness.config import parse, refuse
from aaai23.harness.identity import Identity, finished, finished_line, identify
from aaai23.harness.record import figure
from aaai23.harness.shell import configure_logging, say_sample_data, say_unread

SCRIPT = "torch-vae-cli.py"
parse_arguments = functools.partial(
    parse, VAEConfig, SCRIPT, "Discrete VAE: code an image as M rows of N bits, K of them 1."
)


def main(argv: list[str] | None = None) -> int:
    """Train and measure."""
    config, unread = parse_arguments(argv)
    refuse(config)
    identity = identify("vae", config, config.files())
    log = configure_logging(SCRIPT)
    say_unread(log, config.method, unread)
    say_sample_data(log, identity, config.data_dir, "MNIST")
    record = None if config.again else finished(identity)
    if record is None:
        train(identity, config, log)
        return 0
    log.info(finished_line(identity, record))
    log.info(f"Average Test Loss: {figure(record.final, 'test_loss'):.5f}")
    log.info("Experiment completed.")
    return 0


def train(identity: Identity, config: VAEConfig, log: logging.Logger) -> None:
    """Train and measure a run that is not finished.

    Raises:
        UsageError: the images are of another size than the command line says.
    """
    from aaai23.dvae.data import load  # torch and its friends load only when there is work to do
    from aaai23.dvae.train import run_seed
    from aaai23.harness.loop import select_device

    device = select_device(config.device)
    data = load(config.data_dir, device)
    height, width = data.image_size
    if height * width != config.input_dim:
        right = height * width
        raise UsageError(f"{config.data_dir} has images of {height} x {width} pixels: give --input-dim {right}")
    run_seed(identity, config, data, device, log)
