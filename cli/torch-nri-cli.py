#!/usr/bin/env python3
"""Neural Relational Inference with spanning trees (AAAI 2023).

On sample data, in a minute or two:

    ./get_data.sh sample
    PYTHONPATH=. python3 ./cli/torch-nri-cli.py --data-dir data/sample --prediction_steps 9 --lr 0.0005 \
        --method aimle --aimle-target adaptive --imle-lambda-update-step 0.001 --imle-noise-temperature 1.0 \
        --encoder_hidden 64 --decoder_hidden 64 --num_iterations 200 --eval_every 50 --seed 3

The same line with `--mode eval` measures what it has trained. The experiment of the paper, T=10, forward differences:

    ./get_data.sh nri
    PYTHONPATH=. python3 ./cli/torch-nri-cli.py --suffix _novar_1skip_10t_1r_graph10 --timesteps 10 \
        --prediction_steps 9 --sst tree --relaxation exp_family_entropy --max_range 15 --symmeterize_logits True \
        --lr 0.0001 --temp 0.1 --cuda True --experiments_folder ../exp_nri/aimle_T10 --method aimle \
        --imle-lambda 0.0 --imle-lambda-update-step 0.001 --imle-noise sog --imle-noise-temperature 1.0 \
        --aimle-target adaptive --imle-samples 1 --hard True --st True --seed 3

`--help` lists all flags; `--resume` continues a run that was stopped.
"""

from aaai23.scripts import nri

if __name__ == "__main__":
    nri()
