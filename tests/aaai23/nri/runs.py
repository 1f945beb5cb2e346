"""Runs on graphs of five vertices, their records and their trials."""

import logging
from pathlib import Path

import torch

from aaai23.harness.identity import identify
from aaai23.harness.record import read_record
from aaai23.nri.data import load
from aaai23.nri.evaluate import evaluate_trials
from aaai23.nri.train import run_seed
from aaai23.nri.trial import experiments_folder, trial_folder

TINY = (
    "--suffix _novar_1skip_6t_1r_graph5 --num_vertices 5 --timesteps 6 --prediction_steps 5 --encoder_hidden 16 "
    "--decoder_hidden 16 --lr 0.003 --batch_size 32 --eval_batch_size 10 --num_iterations 6 --eval_every 4 --temp 0.5"
)
ADAPTIVE = "--method aimle --aimle-target adaptive --imle-lambda-update-step 0.001 --imle-noise-temperature 1.0"
SILENT = logging.getLogger("silent")
CPU = torch.device("cpu")


def data_of(config):
    return load(config.data_dir, config.suffix, config.timesteps, config.num_vertices, config.dims)


def identity_of(config):
    return identify("nri", config, config.files())


def trial_of(config):
    return trial_folder(config, identity_of(config))


def train(config):
    return run_seed(identity_of(config), config, data_of(config), trial_of(config), CPU, SILENT)


def evaluate(config):
    return evaluate_trials(config, experiments_folder(config, config.name), data_of(config), CPU)


def record(config, task="nri"):
    return read_record(Path(f"results/{task}/{config.name}/seed{config.seed}.json"))
