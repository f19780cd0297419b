# `make setup` makes .venv/ with everything in it; the other verbs make it first where it is
# missing. `make PYTHON=python3.12 VENV=/elsewhere setup` chooses the interpreter and the place;
# TORCH names another build of torch, as in `make TORCH='torch --index-url …' setup`.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
STAMP := $(VENV)/.autoseg-setup

.PHONY: setup demo test format check test-all bench

setup: $(STAMP)

# torch goes first: whatever follows must be content with the build that was chosen
$(STAMP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/autoseg demo --run

test: $(STAMP)
	$(BIN)/python -m pytest

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python -m pytest

# every test but those that need a GPU
test-all: $(STAMP)
	$(BIN)/python -m pytest -m 'not gpu'

bench: $(STAMP)
	$(BIN)/python -m pytest -m slow --durations=0
