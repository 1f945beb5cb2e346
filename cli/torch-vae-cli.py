#!/usr/bin/env python3
"""The discrete VAE on MNIST (AAAI 2023).

On sample data, in a minute or two:

    ./get_data.sh sample
    PYTHONPATH=. python3 ./cli/torch-vae-cli.py --data-dir data/sample -e 5 -M aimle --aimle-symmetric \
        --aimle-target adaptive --imle-temperature 1 --imle-lambda 0 --aimle-beta-update-step 0.01 \
        --aimle-target-norm 10

On MNIST, the Gumbel-softmax baseline:

    ./get_data.sh vae
    PYTHONPATH=. python3 ./cli/torch-vae-cli.py -M gumbel-softmax --hard

Record, checkpoint and pictures go to results/vae/. `--help` lists all flags; `--resume` continues a run that was
stopped.
"""

from aaai23.scripts import vae

if __name__ == "__main__":
    vae()
