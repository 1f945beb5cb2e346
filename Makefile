# Each target installs .venv when requirements.txt or pyproject.toml changed, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST := .venv-oldest

.PHONY: demo test test-oldest check docs bench data dist publish clean

demo: $(READY)
	./get_data.sh sample
	$(BIN)/python -m aaai23.l2x.demo

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --durations 5

# The library's tests with the oldest torch that it supports, in an environment of their own.
test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest -q -n 2 tests/imle

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, without a network; warnings are errors.
docs: $(READY)
	$(BIN)/python -m sphinx -q -W --keep-going -j auto -b html docs docs/_build

bench: $(READY)
	$(BIN)/python -m benchmarks.run

data: $(READY)
	./get_data.sh

dist: $(READY)
	rm -rf dist
	$(BIN)/python -m build

publish: dist
	$(BIN)/python -m pip install --quiet twine
	$(BIN)/python -m twine upload dist/*

clean:
	rm -rf $(VENV) $(OLDEST) dist docs/_build .hypothesis .pytest_cache .mypy_cache .ruff_cache

$(READY): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(OLDEST)/.ready: pyproject.toml
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		"torch==2.4.*" "numpy<2.3" scipy pebble networkx==3.4.2 hypothesis pytest pytest-xdist
	touch $@
