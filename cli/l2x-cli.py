#!/usr/bin/env python3
"""Learning to Explain on BeerAdvocate (AAAI 2023).

On sample data, in a minute or two:

    ./get_data.sh sample
    PYTHONPATH=. python3 ./cli/l2x-cli.py --data-dir data/sample -a 3 -e 5 -r 3 -M aimle --aimle-symmetric \
        --aimle-target adaptive --imle-noise gumbel --imle-input-temperature 1 --imle-output-temperature 1 \
        --imle-lambda 0 --aimle-beta-update-step 0.001

`--help` lists all flags; `--resume` continues a run that was stopped.
"""

from aaai23.scripts import l2x

if __name__ == "__main__":
    l2x()
