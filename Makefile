# Each target does all of its own set-up: it needs Python ≥ 3.11 with venv, make and a compiler.

PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || echo 2)
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export NUMBA_NUM_THREADS := 1

.PHONY: train test quick lint notebooks docs format clean

train: $(VENV)/.installed ## train HalfCheetah-v5 from scratch on all cores
	$(BIN)/mpirun -n $(CORES) $(BIN)/python -m iwes_mpi.train --preset quickstart

test: lint ## lint, then the whole test suite
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

quick: $(VENV)/.installed ## in less than a minute: the tests that start no job and take no more than a second each
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not mpi and not slow'

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

notebooks: $(VENV)/.installed ## run the notebooks of analysis/ on the committed logs
	$(BIN)/python analysis/execute.py

docs: $(VENV)/.docs ## build the web site of docs/ and the API reference; a warning, such as a broken link, is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs build/docs
	@echo "open build/docs/index.html"

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[mpich,dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build/docs .mypy_cache .ruff_cache .pytest_cache
