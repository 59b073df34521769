# selfzoo: `make quickstart` and `make test` need python3 >= 3.11, make and a package registry, nothing else.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := install --quiet --disable-pip-version-check
# One thread a process: tests and the two runs of quickstart go side by side instead.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-fast compat fuzz lint type docs bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/installed ## create the environment, with the package editable

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "selfzoo needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip $(PIP) hatchling
	$(BIN)/python -m pip $(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

quickstart: install ## train source-only, self-training, FST and the oracle on the embedded benchmark
	$(BIN)/python -m benchmarks.quickstart

test: install ## the whole suite
	$(BIN)/python -m pytest -n auto --maxprocesses 8

test-fast: install ## without the tests that take more than about ten seconds
	$(BIN)/python -m pytest -n auto --maxprocesses 8 -m "not slow"

compat: ## the suite on the oldest and newest libraries, on every Python found (OPTIONS='--only oldest')
	$(PYTHON) .ci/compat.py $(OPTIONS)

fuzz: install ## the readers of configs, manifests and checkpoints against 5000 files each
	SELFZOO_FUZZ=5000 $(BIN)/python -m pytest -q -s tests/test_fuzz.py

lint: install ## style and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

type: install ## types
	$(BIN)/mypy

docs: install ## regenerate the tables of README and docs from the cards
	$(BIN)/python docs/generate.py

bench: install ## the learning proof of FST: three seeds of every variant
	$(BIN)/python -m benchmarks.learning.fst

clean: ## remove the environment, runs and caches
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache
