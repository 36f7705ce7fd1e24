# make search runs the quickstart; make test runs every check. Both make .venv first.
PYTHON ?= python3
# A package index (or folder of wheels) that holds a CPU build of torch, where yours needs one:
#   make search TORCH_INDEX=<url>
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
RECIPE ?= recipes/quickstart.yaml

.PHONY: search test test-all check clean

search: $(VENV)/.installed
	$(BIN)/archloop search $(RECIPE)

test: check
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-all: check
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not gpu and not device"

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP_INSTALL) -e ".[test]"
	$(PIP_INSTALL) --no-deps fla-core
	touch $@

clean:
	rm -rf $(VENV) runs
