# `make setup` makes .venv/ with everything in it; the other verbs make it first where it is
# missing. `make PYTHON=python3.12 VENV=/elsewhere setup` chooses the interpreter and the place;
# TORCH names another build of torch, as in `make TORCH='torch --index-url …' setup`.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
STAMP := $(VENV)/.autoseg-setup

.PHONY: setup demo test format check test-all bench bench-env bench-budgets \
	card card-pack

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

# nnU-Net, to compare with, in an environment of its own. --no-deps keeps torchvision away, which
# timm wants, which networks want that are not compared: pip complains of timm, and may.
RIVAL := .venv-nnunet
RIVAL_STAMP := $(RIVAL)/.autoseg-bench
RIVAL_NEEDS := acvl-utils batchgenerators blosc2 einops graphviz imagecodecs matplotlib nibabel \
	pandas requests scikit-image scikit-learn seaborn SimpleITK tifffile tqdm yacs 'setuptools<81'

$(RIVAL_STAMP):
	test -x $(RIVAL)/bin/python || $(PYTHON) -m venv $(RIVAL)
	$(RIVAL)/bin/python -m pip install --quiet $(TORCH)
	$(RIVAL)/bin/python -m pip install --quiet --no-deps nnunetv2==2.8.1 \
		dynamic-network-architectures==0.4.4 batchgeneratorsv2==0.3.6
	$(RIVAL)/bin/python -m pip install --quiet $(RIVAL_NEEDS)
	touch $@

bench-env: $(RIVAL_STAMP)

# Side by side with nnU-Net: `make bench` measures every part and writes docs/benchmarks.md, about
# fifty minutes on two idle cores. What was measured at this commit on this machine is kept, so it
# can be stopped and goes on; MORE=--lacking keeps what was measured at other commits, too.
# `make bench PART=resample` does one part, `PART="step export" MORE=--redo` measures again,
# `MORE="--times 1"` takes one pair of runs each, and `MORE=--quick` tries all at small sizes.
PART ?=
MORE ?=
bench: $(STAMP) $(RIVAL_STAMP)
	AUTOSEG_BENCH_NNUNET=$(abspath $(RIVAL)) $(BIN)/python -m bench.run $(PART) $(MORE)

# autoseg alone: Dice within given minutes, about two hours on two idle cores
bench-budgets: $(STAMP)
	$(BIN)/python -m bench.budgets train folds
	$(BIN)/python -m bench.run --page

# On a machine with a card: what only a card can tell, in at most eight minutes, as JSON and a page
# in OUT. It is run by the python that is there, which needs torch, numpy, scipy and scikit-image;
# whatever else it lacks comes along in .card/, which `make card-pack` fills where there is a network
# (DATA=folder takes a small dataset along). A second call goes on where the first one was stopped.
OUT ?= card-results
CARD_PYTHON ?= $(shell test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON))
DATA ?=
card:
	$(CARD_PYTHON) -m bench.card --out $(OUT) $(if $(PART),--parts $(PART))

card-pack: $(STAMP)
	$(BIN)/python -m bench.card.pack $(if $(DATA),--data $(DATA))
