"""The main job on sample data: train a selector with AIMLE, print what it reached, show which words it chose.

make demo
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aaai23.errors import UsageError
from aaai23.harness.record import read_record
from aaai23.harness.shell import run_cli
from aaai23.l2x import cli

SCRIPT = "demo"
DATA = Path("data/sample")
OUTPUT = Path("results/demo")
COMMAND = (
    "-a 3 -e 6 -b 20 -K 10 -r 1 -M aimle --aimle-symmetric --aimle-target adaptive --imle-noise gumbel "
    "--imle-input-temperature 1 --imle-output-temperature 1 --imle-lambda 0 --aimle-beta-update-step 0.01 "
    f"--mask-padding --device cpu --name demo --again -c {OUTPUT}/model.pt --data-dir {DATA} --results-dir results"
)


def main(argv: list[str] | None = None) -> int:
    """Train, then print the table and write the pictures to results/demo/."""
    if not (DATA / "annotations.json").exists():
        raise UsageError("there is no sample data: run ./get_data.sh sample first, or make demo")
    os.environ.setdefault("WANDB_MODE", "disabled")
    config, _ = cli.parse_arguments(COMMAND.split())
    (OUTPUT / "model.pt").unlink(missing_ok=True)  # the demo's own, of whatever code and data
    print(f"PYTHONPATH=. python3 ./cli/l2x-cli.py {COMMAND}", flush=True)
    cli.main(COMMAND.split())

    from aaai23.harness.checkpoint import load as load_state
    from aaai23.l2x.data import load
    from aaai23.l2x.plots import explain, write_html, write_png
    from aaai23.l2x.train import build

    data = load(DATA, config.aspect, config.max_len)
    model = build(config, data.embedding)
    model.load_state_dict(load_state(OUTPUT / "model.pt")["model"])
    print(table(read_record("results/l2x/demo/seed0.json").final or {}))

    reviews = explain(model, data, DATA, count=6)
    title = "Which words carry the rating of taste? (sample data)"
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    write_html(OUTPUT / "reviews.html", reviews, title, data.sample_data)
    write_png(OUTPUT / "reviews.png", reviews, title, data.sample_data)
    print(f"pictures: {OUTPUT}/reviews.html and {OUTPUT}/reviews.png")
    return 0


def table(final: Mapping[str, Any]) -> str:
    """Return the final metrics as a short table."""
    rows = {
        "validation MSE x 100": final["best_val_mse"],
        "test MSE x 100": final["best_test_mse"],
        "subset precision, %": final["best_subset_prec"],
        "  chance level, %": final["chance_subset_prec"],
    }
    lines = [f"  {name:<24}{value:8.2f}" for name, value in rows.items()]
    return "\n".join(["", "  sample data, AIMLE (adaptive, central)", *lines, ""])


if __name__ == "__main__":
    run_cli(main, SCRIPT)
