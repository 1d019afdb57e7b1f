# `make help` lists the commands. Each installs what it needs in a virtual environment, $(VENV).
# The environment takes 6 GB; clones can share one: make VENV=~/.cache/audio-encoder/venv test

VENV ?= .venv
PYTHON ?= python3
PY := $(abspath $(VENV))/bin/python
# Empty files that say what $(VENV) holds: the dependencies of this pyproject.toml, and those of its extra dev.
SUM := $(shell cksum < pyproject.toml | cut -d' ' -f1)
RUNTIME := $(VENV)/.runtime-$(SUM)
DEV := $(VENV)/.dev-$(SUM)
# Two files of tests at a time; a file is run by one process, which makes the runs that its tests share once.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --durations=10
export PYTHONPATH := $(CURDIR)

.PHONY: help quickstart test test-slow lint format bench notebooks docs clean
.DEFAULT_GOAL := help

help:            ## this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

quickstart: $(RUNTIME)    ## pretrain a tiny encoder on the demo sounds, measure it, draw a picture (about 5 minutes)
	$(PY) -m src.train fit --config configs/quickstart.yaml

test: $(DEV)              ## the test suite (about 7 minutes on two cores)
	$(PYTEST)

test-slow: $(DEV)         ## the tests that take longer (about 25 minutes)
	$(PYTEST) -m slow

lint: $(DEV)              ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(DEV)            ## put the code into ruff's form
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(DEV)             ## the numbers of docs/results.md (about 15 minutes)
	$(PY) -m benchmarks.parity
	KINETO_LOG_LEVEL=99 $(PY) -m benchmarks.step
	$(PY) -m benchmarks.loader
	$(PY) -m benchmarks.embed

notebooks: $(DEV)         ## run the notebooks and store what they show (about 3 minutes)
	$(PY) notebooks/run.py

docs: $(DEV)              ## the pages of docs/ as a site in build/site
	$(PY) docs/settings.py > docs/settings.md
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

clean:           ## remove the environment and caches, keep runs
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache *.egg-info

$(RUNTIME):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or newer is needed; name one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	rm -f $(VENV)/.runtime-* $(VENV)/.dev-*
	$(PY) -m pip install --quiet --editable .
	touch $@

$(DEV): $(RUNTIME)
	$(PY) -m pip install --quiet --editable '.[dev]'
	touch $@
