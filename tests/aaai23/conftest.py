"""What the tests of all tasks share."""

import pytest

from tests.aaai23.scripts import exit_code


@pytest.fixture
def script(capsys):
    """Run the script of a task's module `cli` in this process: exit code, output, errors."""

    def run_here(cli, words):
        return exit_code(cli, words), *capsys.readouterr()

    return run_here
