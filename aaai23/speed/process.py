"""How a process keeps memory and how its threads wait. Needs no torch, which reads the latter when it is loaded."""

import contextlib
import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def tune_process() -> None:
    """Set how this process keeps memory and how its threads wait; before torch is loaded, which reads the latter.

    The variables of the environment that mean the same, where the user has set them, stay in force.
    """
    # Threads that wait for one another by spinning slow a shared machine down several times over, and those that go
    # to sleep at once cost a step a sixth of its speed on a quiet one. A short spin costs neither. (GNU's OpenMP, which
    # comes with torch from PyPI.)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # A step frees its large tensors and asks for the same ones in the next. By default the memory goes back to the
    # system in between, and is cleared and mapped page by page again: up to half of the time without gradients.
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    with contextlib.suppress(OSError, AttributeError, TypeError):  # only the GNU C library has this
        mallopt = ctypes.CDLL(None).mallopt
        asked = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ) or "_threshold" in tunables
        # older versions refuse more than 32 MB
        if not asked and (mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)):
            mallopt(_M_TRIM_THRESHOLD, -1)
