"""Solvers of one instance that processes import: at the top level of a module that imports next to nothing."""

import os
import subprocess
import threading
import time
from pathlib import Path


def ends_the_process_of_negative(theta):
    return os._exit(3) if theta.min() < 0 else theta


def ends_sleeps_or_raises(theta):
    """End the process of -1, run over on -2 with a child of its own that does, raise on -3, answer the rest."""
    if theta[0] == -1:
        os._exit(3)
    if theta[0] == -2:
        child = subprocess.Popen(["sleep", "60"])
        Path(os.environ["CHILD_FILE"]).write_text(str(child.pid))
        time.sleep(60)
    if theta[0] == -3:
        raise KeyError("no such thing")
    return theta


def process_id(theta):
    return [os.getpid()]


class Model:
    """A solver with a state that cannot be pickled and that two threads cannot share."""

    def __init__(self):
        self.lock = threading.Lock()
        self.costs = None

    def solve(self, theta):
        if not self.lock.acquire(blocking=False):
            raise RuntimeError("two threads share a model")
        self.costs = theta.copy()
        time.sleep(0.002)
        answer = self.costs == theta
        self.costs = None
        self.lock.release()
        return answer * (theta > 0)


def make_model():
    return Model().solve
