"""A small data set, and configurations of runs on it."""

from dataclasses import replace

import pytest

from aaai23.harness.config import refuse
from aaai23.nri import cli
from aaai23.nri.simulate import write
from tests.aaai23.nri.runs import TINY


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Spare the time that it takes to draw, where a test looks at other things."""
    if "pictures" not in request.node.name:
        monkeypatch.setattr("aaai23.nri.train.draw_pictures", lambda *_: None)


@pytest.fixture(scope="session")
def five_vertices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nri")
    write(folder, 6, nb_vertices=5, sizes=(70, 20, 10))
    return folder


@pytest.fixture
def parse(five_vertices, monkeypatch, tmp_path):
    """Return the configuration of a command line; its run will write into an empty folder."""
    monkeypatch.chdir(tmp_path)

    def parse(text="", folder=five_vertices):
        config, _ = cli.parse_arguments([*TINY.split(), "--data-dir", str(folder), "--name", "x", *text.split()])
        refuse(config)
        return replace(config, experiments_folder=config.experiments_folder or "trials")

    return parse
