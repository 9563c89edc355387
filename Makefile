# Every target works in a fresh clone with nothing else first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := ecgfast kernels/ecgfast_kernels tools benchmarks examples tests
NATIVE := $(wildcard kernels/csrc/*) CMakeLists.txt kernels/csrc/CMakeLists.txt

.PHONY: setup demo test test-slow test-gpu mutation lint type kernels bench docs ci clean

## setup: .venv with everything for development
setup: $(VENV)/.dev

## demo: synthetic hospitals -> store -> pretraining -> fine-tuning -> report, on this CPU
demo: $(VENV)/.run
	$(BIN)/ecgfast demo --out demo

## test: every quick test that needs no GPU, under ten minutes on two cores
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "not gpu and not slow"

## test-slow: the others that need no GPU: kills, ranks, long runs
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "slow and not gpu"

## test-gpu: the tests that need a CUDA device
test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

## mutation: break the code in SAMPLE places drawn by SEED, and count what the tests notice; an hour
SAMPLE ?= 150
SEED ?= 0
mutation: $(VENV)/.dev
	$(BIN)/python tests/mutation/mutation.py --sample $(SAMPLE) --seed $(SEED)

lint: $(VENV)/.dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

type: $(VENV)/.dev
	$(BIN)/mypy

## kernels: rebuild the native libraries
kernels: $(VENV)/.dev
	$(PIP) --no-build-isolation --no-deps --editable .

## bench: every measured rate on this machine
bench: $(VENV)/.dev
	$(BIN)/ecgfast bench all

## docs: the documentation site, in build/site; a broken link is an error
docs: $(VENV)/.dev
	$(PIP) 'mkdocs-material>=9.6' 'mkdocstrings[python]>=0.29'
	$(BIN)/python -m mkdocs build --strict

ci: lint type test test-slow

clean:
	rm -rf $(VENV) build demo

# torch first and pinned: a range could pull gigabytes of another build.
$(VENV)/.run: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) scikit-build-core cmake ninja
	$(PIP) --no-build-isolation --editable .
	touch $@

# Triton, xformers and DALI without their dependencies: the CPU tests need none of those gigabytes.
$(VENV)/.dev: $(VENV)/.run
	$(PIP) --no-build-isolation --editable '.[dev]'
	$(PIP) --no-deps triton xformers nvidia-dali-cuda130
	$(PIP) astunparse gast makefun optree packaging six
	touch $@
