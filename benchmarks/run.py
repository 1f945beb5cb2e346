"""Run the benchmarks and print one table.

python -m benchmarks.run [names] [--device cpu|cuda] [--threads N] [--json]
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys

import torch

from benchmarks.measure import Row, as_table

NAMES = ("noise", "solvers", "estimators", "l2x", "dvae", "nri", "replay", "startup")


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Speed, as ratios in one run.")
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help=f"which; all by default: {', '.join(NAMES)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of torch on the CPU (default 2)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for name in args.names or NAMES:
        found = importlib.import_module(f"benchmarks.{name}").run(torch.device(args.device))
        print(as_table(found), file=sys.stderr, flush=True)  # an interrupted run has shown what it measured
        rows += found
    if args.json:
        print(json.dumps([row.as_dict() for row in rows], indent=1))
    else:
        print(f"torch {torch.__version__}, {args.device}, {args.threads} threads; medians of alternating pairs\n")
        print(as_table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
