# Uses the Python that is active, or .venv where there is one.
PYTHON := $(shell [ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)
BIN := $(dir $(PYTHON))
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install format check test test-full bench run

help:  ## this list
	@grep -E '^[a-z-]+: *##' $(MAKEFILE_LIST) | sed -E 's/: *## */\t/' | expand -t 14

install:  ## everything that tests and checks need, into .venv
	python3 -m venv .venv
	.venv/bin/pip install -e ".[dev]" -c requirements/ci-constraints.txt

format:  ## let ruff put the code in order
	$(BIN)ruff format .
	$(BIN)ruff check --fix .

check:  ## what must hold before a commit, without running anything: style, types, spelling, floors
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)pyright --pythonpath $(PYTHON)
	$(BIN)codespell
	$(PYTHON) -m pytest tests/test_floors.py

test:  ## the default tests, under 12 minutes on two cores
	$(PYTHON) -m pytest -n auto

test-full:  ## the slow ones too
	$(PYTHON) -m pytest -n auto -m "not gpu"

bench:  ## the benchmarks: tables of ours beside a peer or a limit
	for file in tests/benchmarks/bench_*.py; do $(PYTHON) $$file || exit 1; done

run:  ## the whole pipeline on a small CarRacing, about 12 minutes on two cores
	$(BIN)wmlightning run world_models/quickstart
