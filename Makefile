# make search runs the quickstart, make test every check, make test-ci what needs services (it
# installs them), make test-kernels the Triton kernels in Triton's interpreter, which needs no GPU. All
# make .venv first, but make test-gpu.
PYTHON ?= python3
# A package index (or folder of wheels) that holds a CPU build of torch, where yours needs one:
#   make search TORCH_INDEX=<url>
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
RECIPE ?= recipes/quickstart.yaml

.PHONY: search docs test test-all test-ci test-engines test-kernels test-gpu check clean

search: $(VENV)/.installed
	$(BIN)/archloop search $(RECIPE)

# The pages of docs/ as a site: docs/_site/index.html.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -q -W -b html docs docs/_site

test: check
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-all: check
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not gpu and not device and not ci and not engines"

# What needs a service or an engine: installed here, as root on Debian.
test-ci: $(VENV)/.installed-engines
	.ci/services
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "ci and not gpu and not device"

# Every mixer in every engine: before their table in docs/runtimes.md is published. Compiles llama.cpp
# once, for minutes; make test-ci runs its tests too where it is there. A part of it, by words of the
# tests' names, refreshes that part of the table: make test-engines ONLY=executorch
ONLY ?=
test-engines: $(VENV)/.installed-llama
	ARCHLOOP_ENGINES_TABLE=docs/results/engines.jsonl $(BIN)/python -m pytest -n 2 -m "(engines or ci) and not gpu and not device" -k "$(ONLY)" tests/runtimes tests/contracts/test_runtimes.py
	$(BIN)/python benchmarks/engines_table.py

# In a folder beside the others' packages: the interpreter fails with newer versions of numpy.
test-kernels: $(VENV)/.installed-test $(VENV)/interpreter
	TRITON_INTERPRET=1 PYTHONPATH=$(VENV)/interpreter $(BIN)/python -m pytest -n 2 -m gpu tests/blocks tests/stack tests/runtimes/test_fused.py tests/runtimes/test_cuda_kernels.py

# On a machine with a card, with the packages that PYTHON has; nothing is installed. In shards of
# under ten minutes: make test-gpu GPU_SHARDS="rest" runs one.
GPU_SHARDS ?= ops blocks rest study
GPU_JOBS ?= 6
SHARD_ops := tests/blocks/ops
SHARD_blocks := tests/blocks --ignore=tests/blocks/ops
SHARD_rest := tests --ignore=tests/blocks --ignore=tests/search/test_study_on_gpu.py
SHARD_study := tests/search/test_study_on_gpu.py

test-gpu: $(addprefix test-gpu-,$(GPU_SHARDS))

test-gpu-%:
	PYTHONPATH=src timeout 600 $(PYTHON) -m pytest -n $(GPU_JOBS) --dist loadgroup -m gpu $(SHARD_$*)

$(VENV)/interpreter: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ triton==3.6.0 numpy==2.3.5
	touch $@

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

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP_INSTALL) -e ".[docs]"
	touch $@

$(VENV)/.installed-engines: $(VENV)/.installed-test
	$(PIP_INSTALL) -e ".[test,executorch,onnx,openvino,ray,docs,ci]"
	touch $@

$(VENV)/.installed-llama: $(VENV)/.installed-engines
	CMAKE_ARGS="-DLLAVA_BUILD=OFF" $(PIP_INSTALL) -e ".[test,executorch,onnx,openvino,llama-cpp]"
	touch $@

clean:
	rm -rf $(VENV) runs
