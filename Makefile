# The few commands people use. `make run` and `make test` need nothing but Python 3.10 or newer and pip's registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export OMP_NUM_THREADS ?= 1
# Modules with public functions: their docstrings name every argument, return value and error.
PUBLIC := kt_ray/studies/zoos.py kt_ray/studies/translators.py kt_ray/studies/study.py

.PHONY: run install test test-slow test-oldest check lint types docs test-gpu test-cluster clean

run: $(VENV)/installed
	$(BIN)/kt-ray run search_spaces/quickstart.yaml

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable .[dev]
	touch $@

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile --durations=10 $(PYTEST)

# The oldest versions that setup.cfg admits, as far as they install, in an environment of their own.
test-oldest:
	$(PYTHON) tests/oldest.py

# Servers, browsers, faults that take minutes.
test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow $(PYTEST)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/python docs/make_results.py --check
	$(BIN)/pydoclint $(PUBLIC)

types: $(VENV)/installed-dev
	$(BIN)/mypy

# `make test` in the same run of CI has tested already: `make check TESTED=1` leaves the tests out.
check: lint types $(if $(TESTED),,test)

# What only a CUDA device shows, and the benchmark of it; elsewhere both say why they skip.
test-gpu: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m gpu -rs tests $(PYTEST)
	$(BIN)/python benchmarks/gpu.py

# As root: five hosts in network namespaces, PostgreSQL, MLflow, a Ray cluster; a study undisturbed and disturbed.
test-cluster: $(VENV)/installed-dev
	$(BIN)/python tests/cluster/rig.py --results tests/cluster/results.json

# The site in docs/_build/html; a warning is an error.
docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) --editable .[docs]
	touch $@

clean:
	rm -rf docs/_build docs/reference $(VENV) build dist *.egg-info
