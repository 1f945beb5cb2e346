"""The main job on sample data: train a selector with AIMLE, print what it reached, show which words it chose.

make demo
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from aaai23.errors import UsageError
from aaai23.l2x import cli
from aaai23.record import read_record, record_path
from aaai23.shell import run_cli

SCRIPT = "demo"
DATA = Path("data/sample")
OUTPUT = Path("results/demo")
COMMAND = (
    "-a 3 -e 6 -b 20 -K 10 -r 1 -M aimle --aimle-symmetric --aimle-target adaptive --imle-noise gumbel "
    "--imle-input-temperature 1 --imle-output-temperature 1 --imle-lambda 0 --aimle-beta-update-step 0.01 "
    f"--mask-padding --device cpu --name demo -c {OUTPUT}/model.pt --data-dir {DATA} --results-dir results"
)


def main(argv: list[str] | None = None) -> int:
    """Train, then print the table and write the pictures to results/demo/."""
    if not (DATA / "annotations.json").exists():
        raise UsageError("there is no sample data: run ./get_data.sh sample first, or make demo")
    os.environ.setdefault("WANDB_MODE", "disabled")
    args = cli.parser().parse_args(COMMAND.split())
    record = record_path(args.results_dir, "l2x", args.name, args.seed)
    for path in (record, args.checkpoint):
        path.unlink(missing_ok=True)  # the demo's own, of whatever code and data
    print(f"PYTHONPATH=. python3 ./cli/l2x-cli.py {COMMAND}", flush=True)
    cli.main(COMMAND.split())

    from aaai23.l2x.data import load
    from aaai23.l2x.picture import explain, write_html, write_png
    from aaai23.l2x.train import build
    from aaai23.run import load_checkpoint

    data = load(DATA, args.aspect, args.max_len)
    model = build(args, data.embedding)
    model.load_state_dict(load_checkpoint(args.checkpoint)["best"]["model"])
    print(table(read_record(record)["final"]))

    reviews = explain(model, data, DATA, count=6)
    title = "Which words carry the rating of taste? (sample data)"
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    write_html(OUTPUT / "reviews.html", reviews, title, data.sample_data)
    write_png(OUTPUT / "reviews.png", reviews, title, data.sample_data)
    print(f"pictures: {OUTPUT}/reviews.html and {OUTPUT}/reviews.png")
    return 0


def table(final: dict[str, float]) -> str:
    """Return the final figures as a short table."""
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
