"""What a run ran on: source revision, versions, device, host. Nothing here imports torch."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """Return what a run ran on: source revision, versions, device, host, number of CPU cores."""
    commit, dirty = _git_revision()
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "device": device_name(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
    }


def device_name() -> str:
    """Return the GPU's name if this process has computed on one, else the processor's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    if package in sys.modules:
        return str(sys.modules[package].__version__)  # says +cpu or +cu130, which the metadata may not
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> tuple[str | None, bool | None]:
    """Return (commit, whether tracked files differ from it), or (None, None) outside the repository."""
    root = Path(__file__).resolve().parents[2]
    found = _git(root, "rev-parse", "--show-toplevel", "HEAD")
    if found is None or len(found.splitlines()) != 2:
        return None, None
    top, commit = found.splitlines()
    if Path(top) != root:  # installed into a folder of somebody else's repository
        return None, None
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ("git", "-C", str(root), *arguments), capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
