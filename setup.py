"""What an editable install has beyond the wheel: the experiments, which live in this repository, and their commands."""

import sys

from setuptools import find_packages, setup

packages, commands = ["imle*"], []
if "editable_wheel" in sys.argv:
    packages.append("aaai23*")
    commands = [
        "l2x-cli = aaai23.l2x.cli:entry",
        "torch-nri-cli = aaai23.nri.cli:entry",
        "torch-vae-cli = aaai23.dvae.cli:entry",
    ]

setup(packages=find_packages(include=packages), entry_points={"console_scripts": commands})
