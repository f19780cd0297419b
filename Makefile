# `make setup` makes .venv/ with everything in it; the other verbs make it first where it is
# missing. `make PYTHON=python3.12 VENV=/elsewhere setup` chooses the interpreter and the place;
# TORCH names another build of torch, as in `make TORCH='torch --index-url …' setup`.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
STAMP := $(VENV)/.autoseg-setup

.PHONY: setup demo test format check test-all bench bench-env

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

# nnU-Net, to compare with, in an environment of its own; --no-deps keeps torchvision away
RIVAL := .venv-nnunet
RIVAL_NEEDS := acvl-utils batchgenerators blosc2 einops graphviz imagecodecs matplotlib nibabel \
	pandas requests scikit-image scikit-learn seaborn SimpleITK tifffile tqdm yacs 'setuptools<81'

$(RIVAL)/bin/nnUNetv2_train:
	$(PYTHON) -m venv $(RIVAL)
	$(RIVAL)/bin/python -m pip install --quiet $(TORCH)
	$(RIVAL)/bin/python -m pip install --quiet --no-deps nnunetv2==2.8.1 \
		dynamic-network-architectures==0.4.4 batchgeneratorsv2==0.3.6
	$(RIVAL)/bin/python -m pip install --quiet $(RIVAL_NEEDS)

bench-env: $(RIVAL)/bin/nnUNetv2_train

# `make bench PART=preprocess`; the training figures take about an hour on two idle cores
PART ?= start preprocess train
bench: $(STAMP) bench-env
	$(BIN)/python bench/run.py $(PART) --write
