# Set-up and checks. A fresh machine needs python3 >= 3.11 with venv, and make; all else goes into .venv.
#
#   make demo     see it run               make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
#   make test     everything that CI runs  (takes PyTorch without CUDA: 2.5 GB less to download)

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install
BENCHMARKS := $(filter-out benchmarks/common.py benchmarks/burning.py benchmarks/faults.py benchmarks/torn.py,$(sort $(wildcard benchmarks/*.py)))

.DEFAULT_GOAL := help
.PHONY: help demo test bench soak campaign torn clean

help:  ## Show this list.
	@sed -n 's/^\([a-z]*\):.*##/make \1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/.installed  ## Watch 8 cart-poles run through their MPCs on the wall clock (ARGS="..." for options).
	@$(BIN)/python -m rt_lrhc demo $(ARGS)

test: $(VENV)/.checkers  ## Run ruff, mypy and pytest; all of them, also when one fails.
	@failed=; \
	for check in "ruff check ." "ruff format --check ." "mypy" "pytest $(ARGS)"; do \
		echo "== $$check"; \
		$(BIN)/python -m $$check || failed="$$failed, $$check"; \
	done; \
	if [ -n "$$failed" ]; then echo "make test: failed: $${failed#, }" >&2; exit 1; fi

bench: $(VENV)/.checkers  ## Run every benchmark, one after the other; for one: .venv/bin/python benchmarks/NAME.py
	@set -e; for benchmark in $(BENCHMARKS); do echo "== $$benchmark"; $(BIN)/python $$benchmark; done

soak: $(VENV)/.checkers  ## Run a day of 50 Hz on virtual time, with late agents, pauses and changes (minutes).
	$(BIN)/python -m pytest -s -o timeout=3600 tests/soak/day.py

campaign: $(VENV)/.installed  ## Kill workers 1000 times and stop them 200 times (15 minutes; ARGS="..." for options).
	@$(BIN)/python benchmarks/faults.py $(ARGS)

torn: $(VENV)/.installed  ## Read shared slots under a hot writer 10 million times, with checksums (ARGS="..." for options).
	@$(BIN)/python benchmarks/torn.py $(ARGS)

clean:  ## Remove the virtual environment, caches and what was built.
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PyTorch comes first, so that its index serves nothing else, and pinned, so that everybody runs the same one.
$(VENV)/.installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "rt_lrhc needs Python >= 3.11, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
			"name another one: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	$(PIP) --editable .
	@touch $@

$(VENV)/.checkers: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@touch $@
