# The few commands people use. `make run` and `make test` need nothing but Python 3.10 or newer and pip's registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export OMP_NUM_THREADS ?= 1

.PHONY: run install test test-slow check lint types test-gpu test-cluster clean

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
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile $(PYTEST)

# Servers, browsers, faults that take minutes.
test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow $(PYTEST)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/python docs/make_results.py --check

types: $(VENV)/installed-dev
	$(BIN)/mypy

# `make test` in the same run of CI has tested already: `make check TESTED=1` leaves the tests out.
check: lint types $(if $(TESTED),,test)

test-gpu: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m gpu

# As root: five hosts in network namespaces, PostgreSQL, MLflow, a Ray cluster; a study undisturbed and disturbed.
test-cluster: $(VENV)/installed-dev
	$(BIN)/python tests/cluster/rig.py --results tests/cluster/results.json

clean:
	rm -rf $(VENV) build dist *.egg-info
