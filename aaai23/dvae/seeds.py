"""Several seeds of the discrete VAE, trained as one batched model.

Each seed keeps a session of its own, with its record, its noise, its beta and its checkpoint, and becomes what it would
be alone: to the last digit on a CPU (where layers have multiples of 16 parameters, as the published ones do), but for
float rounding on a GPU. Only the computing is joint, so the seconds of a record are those of all its seeds together. A
checkpoint can be continued either way, on the kind of device that wrote it.
"""

from __future__ import annotations

import contextlib
import logging
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aaai23.dvae.data import MNIST
from aaai23.dvae.model import stack
from aaai23.dvae.train import (
    Session,
    build_layer,
    measure,
    new_optimiser,
    open_run,
    open_session,
    run_seed,
    set_temperature,
    test_figures,
    test_line,
    train_epoch,
    training_line,
)
from aaai23.run import accelerate, generator_like_torchs


def run_seeds(jobs: Sequence[tuple[Namespace, Path]], data: MNIST, device: torch.device, log: logging.Logger) -> None:
    """Train and measure several seeds of one configuration, as `run_seed` does one.

    Seeds that continue from checkpoints of different epochs cannot go side by side: each epoch's go together.

    Args:
        jobs: of each seed the parsed command line and the path of its checkpoint.
        data: images on `device`.
        device: where to compute.
        log: gets the lines of an epoch.

    Raises:
        FloatingPointError: in some seeds a loss was NaN or infinite; the others are finished.
    """
    together: dict[tuple[int, int], list[Session]] = defaultdict(list)
    for args, path in jobs:
        session = open_session(args, data, path, device)
        session.generator = generator_like_torchs(device)
        together[session.epoch, session.iteration].append(session)
    failed: dict[int, FloatingPointError] = {}
    for sessions in together.values():
        if len(sessions) > 1:
            failed |= _train(sessions, log)
            continue
        (alone,) = sessions
        try:
            run_seed(alone.args, data, alone.path, device, log)
        except FloatingPointError as error:
            failed[alone.args.seed] = error
    if failed:
        reasons = "; ".join(f"seed {seed}: {error}" for seed, error in failed.items())
        raise FloatingPointError(f"{len(failed)} of {len(jobs)} seeds failed, the others are finished; {reasons}")


def _train(sessions: Sequence[Session], log: logging.Logger) -> dict[int, FloatingPointError]:
    """Train side by side to the end; returns the seeds that failed on the way, and why."""
    failed: dict[int, FloatingPointError] = {}
    with contextlib.ExitStack() as stack_of_runs:
        runs = [stack_of_runs.enter_context(open_run(session)) for session in sessions]
        seeds = SeedStack(sessions)
        while len(failed) < len(sessions) and not sessions[0].done():
            for run, session, figures in zip(runs, sessions, seeds.next_epoch(), strict=True):
                seed = session.args.seed
                if seed in failed:
                    continue
                if isinstance(figures, FloatingPointError):
                    run.fail(figures)
                    failed[seed] = figures
                    log.error(f"Seed {seed}\t{figures}")
                    continue
                log.info(f"Seed {seed}\t{training_line(session.label, figures)}")
                log.info(f"Seed {seed}\t{test_line(figures)}")
                session.keep(run, figures)
        for run, session in zip(runs, sessions, strict=True):
            if session.args.seed not in failed:
                session.draw()
                run.finish(session.final())
        if len(failed) < len(sessions):
            log.info("Experiment completed.")  # W&B prints its summaries below it
    return failed


class SeedStack:
    """The networks of several sessions as one batched model, and one optimiser for all.

    Args:
        sessions: of different seeds, after the same number of epochs, each with a generator of its own.
    """

    def __init__(self, sessions: Sequence[Session]):
        first = sessions[0]
        self.sessions, self.args, self.data, self.device = sessions, first.args, first.data, first.device
        self.generators = [session.generator for session in sessions if session.generator is not None]
        models = [session.model for session in sessions]
        self.model = stack(models, build_layer(self.args, self.generators)).to(self.device)
        self.model.load_state_dict(_stacked([model.state_dict() for model in models]))  # with the layer's beta
        accelerate((self.model.encoder, self.model.decoder), self.args.precision, self.args.compile, self.device)
        self.optimiser = new_optimiser(self.model)
        states = [session.optimiser.state_dict() for session in sessions]
        parameters = {i: _stacked([state["state"][i] for state in states]) for i in states[0]["state"]}
        self.optimiser.load_state_dict({**states[0], "state": parameters})

    def next_epoch(self) -> list[dict[str, Any] | FloatingPointError]:
        """Train one epoch and measure; returns for each seed its figures, or why it has none."""
        plans = [session.begin_epoch() for session in self.sessions]
        batches = [torch.stack(of_seeds) for of_seeds in zip(*(batches for batches, _ in plans), strict=True)]
        _, temperatures = plans[0]
        label = self.sessions[0].label
        losses = train_epoch(self.model, self.optimiser, self.data.train, batches, temperatures, label)
        self._hand_out()
        set_temperature(self.model.layer, self.sessions[0].temperature(self.sessions[0].iteration))
        with self._own_noise():
            measured = measure(self.model, self.data.test, (len(self.sessions),))
        return [_figures(*of_seed) for of_seed in zip(self.sessions, losses.unbind(1), measured.unbind(1), strict=True)]

    def _hand_out(self) -> None:
        """Give each session its weights and its part of the optimiser's state."""
        weights, optimiser = self.model.state_dict(), self.optimiser.state_dict()
        for i, session in enumerate(self.sessions):
            session.model.load_state_dict(_part(weights, i))
            state = {parameter: _part(values, i) for parameter, values in optimiser["state"].items()}
            session.optimiser.load_state_dict({**optimiser, "state": state})

    @contextlib.contextmanager
    def _own_noise(self) -> Iterator[None]:
        """As `own_noise`, for each seed."""
        before = [generator.get_state() for generator in self.generators]
        for session, generator in zip(self.sessions, self.generators, strict=True):
            generator.manual_seed(session.args.seed)
        yield
        for generator, state in zip(self.generators, before, strict=True):
            generator.set_state(state)


def _figures(session: Session, losses: Tensor, measured: Tensor) -> dict[str, Any] | FloatingPointError:
    try:
        return session.training_figures(losses) | test_figures(measured)
    except FloatingPointError as error:
        return error


def _stacked(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors of one name as one, `[R, ...]`; all seeds share the number of steps."""
    return {
        name: value if name == "step" else torch.stack([state[name] for state in states])
        for name, value in states[0].items()
    }


def _part(state: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
    """Return the tensors of seed i out of what `_stacked` makes."""
    return {name: (value if name == "step" else value[i]).clone() for name, value in state.items()}
