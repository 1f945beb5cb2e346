"""The W&B mirror of a run's record: optional, offline without an account, and never the reason that a run fails."""

import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

_P = ParamSpec("_P")
_LOGGER = logging.getLogger(__name__)
_INIT_SECONDS = 30.0  # then a run that cannot reach the server goes on offline
_FINISH_SECONDS = 120.0  # then what is not uploaded stays in the run's folder, for `wandb sync`
_ROOM = 2**16  # bytes; W&B writes into its log by half of that
_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")

_open: set["Tracker"] = set()  # those whose runs are open in this process


def wandb_mode() -> str:
    """Return the mode that W&B runs in: what the user asked for, else online with an account, else offline.

    A mode is asked for by WANDB_MODE or by `wandb offline|disabled`; an account is one that `wandb.login` finds.

    Raises:
        ValueError: W&B has no such mode.
    """
    asked = os.environ.get("WANDB_MODE")
    if asked:
        if asked not in _MODES:
            raise ValueError(f"WANDB_MODE is {asked!r}: choose online, offline or disabled")
        return asked
    os.environ.pop("WANDB_MODE", None)  # W&B refuses an empty one
    import wandb

    saved = str(wandb.setup().settings.mode)
    if saved != "online" or wandb.login(prompt=False, verify=False):
        return saved
    _say_offline()
    return "offline"


def _folder() -> Path:
    """Return the folder that W&B writes its runs into; where it cannot, it says so itself."""
    root = Path(os.environ.get("WANDB_DIR") or ".").expanduser()
    return root / (".wandb" if (root / ".wandb").exists() else "wandb")


@functools.cache
def _say_offline() -> None:
    """Say it once per process, however many seeds it runs."""
    _LOGGER.warning("no W&B account at hand: logging offline into %s (`wandb login` first to upload)", _folder())


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _never_fails(method: Callable[Concatenate["Tracker", _P], None]) -> Callable[Concatenate["Tracker", _P], None]:
    """Turn any exception of a Tracker's method into one warning, and switch the tracker off."""

    @functools.wraps(method)
    def guarded(self: "Tracker", *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self._run = None
            _open.discard(self)
            _LOGGER.warning("W&B is off for the rest of this run: %s", _reason(error))
            if not _open:  # W&B's own end of a service that is gone would show a traceback as the process ends
                with suppress(Exception):
                    sys.modules["wandb"].teardown()

    return guarded


class Tracker:
    """One W&B run, or nothing: with mode `disabled` W&B is not even imported.

    A run's id is the caller's, so that a run which is started again replaces itself on the server. W&B cannot
    resume an offline run: each start makes a folder of its own, into which the caller logs the whole history.
    """

    def __init__(self) -> None:
        self._run: Any = None
        self._full = False

    @_never_fails
    def start(
        self,
        project: str,
        *,
        run_id: str,
        name: str,
        group: str,
        tags: Sequence[str],
        config: Mapping[str, Any],
    ) -> None:
        """Open the run; WANDB_RUN_GROUP goes before `group`."""
        mode = wandb_mode()
        if mode == "disabled":
            return
        options: dict[str, Any] = {
            "project": project,
            "id": run_id,
            "name": name[:128],  # W&B's limits
            "group": (os.environ.get("WANDB_RUN_GROUP") or group)[:128],
            "tags": [tag[:64] for tag in tags if tag],
            "config": dict(config),
        }
        self._run = _init(mode, options)
        _open.add(self)

    @_never_fails
    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log one step; metrics that are None are left out."""
        if self._run is not None:
            self._check_room()
            self._run.log({key: value for key, value in metrics.items() if value is not None}, step=step)

    @_never_fails
    def summarise(self, final: Mapping[str, Any]) -> None:
        """Put the final metrics into the run's summary."""
        if self._run is not None:
            self._run.summary.update({key: value for key, value in final.items() if value is not None})

    @_never_fails
    def close(self, exit_code: int) -> None:
        """End the run; W&B prints the run's history and summary to stderr."""
        run, self._run = self._run, None
        _open.discard(self)
        if run is not None:
            run.finish(exit_code=exit_code)
            self._check_room()

    def _check_room(self) -> None:
        """Warn once of a full disk, of which W&B's own process says nothing."""
        with suppress(OSError):
            room = os.statvfs(_folder())
            if room.f_bavail * room.f_frsize < _ROOM and not self._full:
                self._full = True
                _LOGGER.warning(
                    "no space left in %s: W&B's log of this run is incomplete, its record is not", _folder()
                )


def _init(mode: str, options: dict[str, Any]) -> Any:
    """Start a W&B run; one that cannot reach its server is started offline instead."""
    if mode == "offline":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline means that nothing calls home
    import wandb

    settings = wandb.Settings(
        reinit="create_new",  # several runs may be open at a time
        console="off",  # the terminal and its log files stay the program's own
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=_INIT_SECONDS,
        finish_timeout=_FINISH_SECONDS,
    )
    try:
        return wandb.init(mode=mode, settings=settings, **options)  # type: ignore[arg-type]
    except Exception as error:
        if mode != "online":
            raise
        _LOGGER.warning("W&B cannot start online (%s): logging offline, `wandb sync` uploads it later", _reason(error))
        # the failed start still holds the run's id
        if _open:  # teardown would end these runs too
            options = {**options, "id": f"{options['id']}-offline"}
        else:
            wandb.teardown()
        os.environ["WANDB_MODE"] = "offline"  # the process's next runs need not wait for the server again
        return wandb.init(mode="offline", settings=settings, **options)
