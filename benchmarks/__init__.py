"""Speed, as ratios against plain implementations or against a floor, measured alternately in one run."""

from aaai23.speed.process import tune_process

tune_process()  # as the command lines do, before torch is loaded
