# Everything a fresh machine needs is Python 3.11 or newer, and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint format benchmark build clean

# Trains seven tasks on scikit-learn's digits and shows what came of it: minutes on two cores.
demo: $(VENV)/demo
	$(BIN)/python -m cwps_jax.main --config configs/digits.py $(ARGS)

test: $(VENV)/test
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(VENV)/test
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(VENV)/demo
	$(BIN)/python benchmarks/step.py --out benchmarks/results/step_cpu.json
	$(BIN)/python benchmarks/render.py

build: $(VENV)/test
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "cwps_jax needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/demo $(VENV)/test: $(VENV)/%: $(VENV)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@
