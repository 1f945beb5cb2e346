#!/usr/bin/env python3
"""Gradients of estimators beside exact ones, on problems small enough to list all solutions.

In a minute each:

    PYTHONPATH=. python3 ./cli/synth-cli.py lambda --quick
    PYTHONPATH=. python3 ./cli/synth-cli.py samples --quick
    PYTHONPATH=. python3 ./cli/synth-cli.py bias-variance --quick
    PYTHONPATH=. python3 ./cli/synth-cli.py optimise --quick --loss coupled
    PYTHONPATH=. python3 ./cli/synth-cli.py adapt --quick
    PYTHONPATH=. python3 ./cli/synth-cli.py noise --quick

Without `--quick`, on 128 problems; other structures, and the paper's Fig. 1:

    PYTHONPATH=. python3 ./cli/synth-cli.py bias-variance --structure trees
    PYTHONPATH=. python3 ./cli/synth-cli.py lambda -n 50 -k 1 --samples 1000 --repeats 2

A record and a picture, PNG and SVG, go to results/synth/. `--help` lists all flags.
"""

from aaai23.scripts import synth

if __name__ == "__main__":
    synth()
