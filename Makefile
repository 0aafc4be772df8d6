# `make` lists the targets. Everything is installed into .venv beside this file and nowhere else.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
CONFIG ?= configs/runs/quickstart.yaml
WORKERS ?= auto

BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PACKAGES := hyperadapter data_pipeline cluster
pinned = $(shell grep -iE '^($(1))==' constraints.txt)

# DeepSpeed compiles its operators at first use: keep them, so that it happens once a checkout.
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.cache/torch_extensions
export DS_BUILD_OPS = 0

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test check clean
.DELETE_ON_ERROR:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Install everything into .venv (again only when setup.cfg or constraints.txt change)

# torch comes first because deepspeed's build imports it; --no-build-isolation lets it see it.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null || { \
	    echo 'Python 3.11 or 3.12 is needed, but PYTHON=$(PYTHON) is not one; try: make setup PYTHON=/path/to/python3.11' >&2; \
	    exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo '$(PYTHON) cannot make virtual environments; install its venv package (Debian: python3-venv)' >&2; \
	    exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null || { \
	    echo "DeepSpeed needs a C++ compiler, but there is no $${CXX:-c++}; install one (Debian: g++) or set CXX" >&2; \
	    exit 1; }
	@command -v nvidia-smi >/dev/null || { \
	    echo 'No NVIDIA GPU seen. Unless pip is told of CPU builds of torch it fetches the CUDA build (5 GB),'; \
	    echo "which works too. To save the space, set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index first."; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@echo 'Installing into .venv (some minutes at first) ...'
	@$(PIP) $(call pinned,pip|setuptools|wheel)
	@$(PIP) $(call pinned,torch)
	@$(PIP) --no-build-isolation $(call pinned,deepspeed)
	@$(PIP) --no-build-isolation --editable '.[test]'
	@touch $@

quickstart: setup ## Train a small model on real text, score it, and track it in MLflow
	$(BIN)/hyperadapter run --config $(CONFIG)

test: setup ## Run all tests (those that need a GPU or Slurm are skipped where there is none)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m 'not (distributed or slow or slurm or gpu)'
	@# Tests with Slurm wait most of the time: they run beside the others and are shown after them.
	@mkdir -p .cache; \
	$(BIN)/python -m pytest -p no:cacheprovider --durations 5 -m 'slurm' >.cache/test-slurm.log 2>&1 & \
	$(BIN)/python -m pytest --durations 10 -m '(distributed or slow or gpu) and not slurm'; others=$$?; \
	wait $$!; slurm=$$?; cat .cache/test-slurm.log; exit $$((others || slurm))

check: setup ## Lint, format, types, and who may import what
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict $(addprefix -p ,$(PACKAGES))
	$(BIN)/lint-imports --no-logo

clean: ## Remove caches and build outputs (runs, data and .venv stay)
	rm -rf .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
