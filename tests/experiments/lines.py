"""The lines that generators print, read back by the scripts that they start."""

import importlib
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from aaai23.harness.config import refuse
from aaai23.harness.identity import identify
from aaai23.harness.record import Record, write_record

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments"
sys.path.insert(0, str(FOLDER))
import generate_l2x_aimle_cmd as l2x  # noqa: E402
import generate_nri_aimle_cmd as nri  # noqa: E402
import generate_vae_aimle_cmd as vae  # noqa: E402
import sweep  # noqa: E402
import tables  # noqa: E402, F401

GENERATORS = {"l2x": l2x, "vae": vae, "nri": nri}
PUBLISHED = {  # the paper's commands, as its authors give them
    "l2x": "-a 3 -e 20 -b 40 -k 3 -H 250 -m 350 -K 10 -r 10 -M aimle --aimle-symmetric --aimle-target adaptive "
    "--imle-samples 1 --imle-noise gumbel --imle-input-temperature 1.0 --imle-output-temperature 1.0 --imle-lambda "
    "0.0 --sst-temperature 0.0 --softsub-temperature 0.5 --ste-noise sog --ste-temperature 0.0 --gradient-scaling "
    "--aimle-beta-update-momentum 0.0 --aimle-beta-update-step 0.0001 --aimle-target-norm 1.0",
    "vae": "-e 100 -b 100 -K 10 --code-m 20 --code-n 20 -M aimle --imle-samples 10 --imle-noise sog "
    "--imle-temperature 1.0 --imle-lambda 0.0 --aimle-symmetric --aimle-target adaptive --ste-noise sog "
    "--ste-temperature 0.0 --seed 0 --init-temperature 0.0 --gradient-scaling --aimle-beta-update-momentum 0.0 "
    "--aimle-beta-update-step 0.001 --aimle-target-norm 10.0",
    "nri": "--suffix _novar_1skip_10t_1r_graph10 --timesteps 10 --prediction_steps 9 --sst tree --relaxation "
    "exp_family_entropy --max_range 15 --symmeterize_logits True --lr 0.0001 --temp 0.1 --eps_for_finitediff 1.0 "
    "--cuda True --use_cpp_for_sampling True --method aimle --imle-lambda 0.0 --imle-lambda-update-step 0.001 "
    "--imle-noise sog --imle-noise-temperature 1.0 --aimle-target adaptive --imle-samples 1 --hard True --st True "
    "--experiments_folder ../exp_nri/aimle_v3_T10_nosym_best_3 --seed 3",
}


def cli_of(task):
    """Return the module of a task's script."""
    return importlib.import_module(sweep.CLIS[task])


def printed_by(capsys, task, *words):
    """Run a generator in this process; returns the lines that it prints, and what it says beside them."""
    assert GENERATORS[task].main(list(map(str, words))) == 0
    out, err = capsys.readouterr()
    return out.splitlines(), err


def split(line):
    """Return (script, arguments, log) of a printed line."""
    words = shlex.split(line)
    begin = next(n for n, word in enumerate(words) if word.startswith("./cli/"))
    end = words.index(">>")
    assert words[begin - 2] == "PYTHONPATH=." and words[end + 2 :] == ["2>&1"]
    return words[begin], words[begin + 1 : end], words[end + 1]


def configured(task, line):
    """Return the configuration that the script's own parser and checks make of a line."""
    script, arguments, _ = split(line)
    assert script == f"./cli/{cli_of(task).SCRIPT}" and (ROOT / script).exists()
    config, _ = cli_of(task).parse_arguments(arguments)
    refuse(config)
    return config


def fill(job, status="finished", data=None, **changes):
    """Write the record that a job leaves: with its settings but for `changes`, of the data that lie there now."""
    config = sweep.config_of(job.task, job.arguments())
    identity = identify(job.task, replace(config, **changes), config.files())
    record = Record(
        task=job.task,
        name=job.name,
        seed=job.seed,
        method=identity.method,
        status=status,
        sample_data=identity.sample_data,
        settings=dict(identity.settings),
        data=data or identity.data,
        final={},
    )
    write_record(job.record, record)
