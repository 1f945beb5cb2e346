"""What an editable install has beyond the wheel: the experiments, which live in this repository, and their commands."""

import sys

from setuptools import find_packages, setup

packages, commands = ["imle*"], []
if "editable_wheel" in sys.argv:
    packages.append("aaai23*")
    commands = [
        "l2x-cli = aaai23.scripts:l2x",
        "synth-cli = aaai23.scripts:synth",
        "torch-nri-cli = aaai23.scripts:nri",
        "torch-vae-cli = aaai23.scripts:vae",
    ]

setup(packages=find_packages(include=packages), entry_points={"console_scripts": commands})
