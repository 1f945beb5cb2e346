"""The scripts by their names, for the shell. Each loads its task once it can end in order."""

from aaai23.harness.shell import run_cli


def l2x() -> None:
    """Run Learning to Explain."""
    run_cli("aaai23.l2x.cli", "l2x-cli.py")


def vae() -> None:
    """Run the discrete VAE."""
    run_cli("aaai23.dvae.cli", "torch-vae-cli.py")


def synth() -> None:
    """Run the measures of gradients."""
    run_cli("aaai23.synth.cli", "synth-cli.py")


def nri() -> None:
    """Run Neural Relational Inference."""
    run_cli("aaai23.nri.cli", "torch-nri-cli.py")
