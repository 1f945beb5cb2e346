"""Training steps that a GPU replays, against the same started by Python; nothing to see on a CPU."""

import torch

from benchmarks import dvae, l2x, nri
from benchmarks.measure import Row, compare


def run(device: torch.device) -> list[Row]:
    """Measure the steps of the three tasks."""
    if device.type == "cpu":
        return []
    steps = {"L2X": l2x, "VAE": dvae, "NRI T=10": nri}
    return [
        compare(
            f"{name} step, replayed",
            task.training_step_of_the_paper(device),
            "started by Python",
            task.training_step_of_the_paper(device, replay=False),
            device,
            repeats=10,
        )
        for name, task in steps.items()
    ]
