# Each target installs .venv when requirements.txt or pyproject.toml changed, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check bench data clean

demo: $(READY)
	./get_data.sh sample
	$(BIN)/python -m aaai23.l2x.demo

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --durations 5

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks.run

data: $(READY)
	./get_data.sh

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(READY): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
