# What a checkout can do; `make` alone lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(patsubst %/pyproject.toml,./%,$(wildcard plugins/*/pyproject.toml))
STAMP := $(VENV)/.installed
CONSTRAINTS := constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS)
PYTEST := $(BIN)/python -m pytest -n 2

.PHONY: help venv demo format-experiments results test test-slow test-exhaustive test-models test-cuda test-torch test-clusters sweep-toy loss-slope-toy bench exactness models pages notebook lint format clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## create .venv with altcore, its plugins and the tools (PYTHON=python3.12 chooses another Python)

# Editable installs of distributions that need each other must go into one pip command: each alone
# cannot find the rest. With flit_core there first, pip need not build an environment for each of
# them, nor ask the network when only a pyproject.toml changed. Compiling every module of torch
# would double the time, so only what an import reaches is compiled, once.
$(STAMP): pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "altcore needs Python 3.11 or newer, and $(PYTHON) is not: try make venv PYTHON=python3.12" >&2; exit 1; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	    echo "$(PYTHON) cannot create virtual environments: install its venv package (Debian, Ubuntu: python3-venv)" >&2; exit 1; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (at first about a minute and 1 GB; more with a CUDA build of torch)"
	@$(PIP) flit_core
	@$(PIP) --no-build-isolation --no-compile -e '.[dev]' $(addprefix -e ,$(PLUGINS))
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import cattrs, hypothesis, pytest, rich, structlog, torch'
	@touch $@

demo: venv ## train a small GPT in E7M0 with ULP statistics, and say where the report lies
	$(BIN)/altcore train --format E7M0 --plugin ulp-stats

format-experiments: venv ## the original experiments one after another (DEVICE=cuda DATA=eurlex STEPS=2)
	$(BIN)/python experiments/run.py $(if $(DEVICE),--device $(DEVICE)) $(if $(DATA),--data $(DATA)) $(if $(STEPS),--steps $(STEPS))

results: venv ## train the 36 runs of docs/results (20 minutes), and write its three reports (RUNS=folder)
	$(BIN)/python experiments/results.py $(if $(RUNS),--runs-dir $(RUNS))

test: lint ## what CI runs: lint, then the tests but slow, exhaustive, models and cuda ones
	$(PYTEST)

test-slow: venv ## the tests marked slow
	$(PYTEST) -m "slow and not cuda"

test-exhaustive: venv ## the tests marked exhaustive: every code, every float of a range, the kernels under sanitizers
	$(PYTEST) -m "exhaustive and not cuda"

test-models: venv ## the tests marked models: some fifty models under every recipe
	$(PYTEST) -m "models and not cuda"

test-cuda: venv ## the tests marked cuda, then those of runs and plugins on an NVIDIA GPU
	$(PYTEST) -m cuda
	ALTCORE_TEST_DEVICE=cuda $(PYTEST) tests/engine tests/plugins/diagnostics tests/plugins/interventions

# Some of what torch needs it asks for in a version of its own.
TORCH := 2.8.0
OTHER := .venv-torch-$(TORCH)
test-torch: ## what CI tests, under another torch in its own .venv-torch-VERSION: the oldest allowed (TORCH=2.11.0)
	@mkdir -p $(OTHER)
	@sed -E -e '/^(setuptools|sympy|torch)==/d' -e '$$atorch==$(TORCH)' constraints.txt >$(OTHER)/constraints.txt
	@$(MAKE) --no-print-directory venv VENV=$(OTHER) CONSTRAINTS=$(OTHER)/constraints.txt
	$(OTHER)/bin/python -m pytest -n 2

# Daemons of a cluster come from the system, which only root may change; without them tests skip.
test-clusters: venv ## the tests marked cluster: sweeps through faults of a real Slurm and a real Ray, which it installs
	@$(PIP) --no-compile 'altcore-executors[ray,slurm]'
	@command -v slurmctld >/dev/null || ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ] || \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null
	$(BIN)/python -m pytest -rs -m cluster

STUDY = loss-slope-toy --sweeps-dir $(or $(SWEEPS),sweeps)
loss-slope-toy: venv ## run the loss-slope study at toy size, from the plan to the verdict (SWEEPS=folder)
	$(BIN)/altcore sweep plan examples/loss-slope-toy.yaml --sweeps-dir $(or $(SWEEPS),sweeps) | tail -2
	time $(BIN)/altcore sweep run examples/loss-slope-toy.yaml --executor local:2 --sweeps-dir $(or $(SWEEPS),sweeps)
	-$(BIN)/altcore sweep status $(STUDY)
	-$(BIN)/altcore sweep verify $(STUDY)
	$(BIN)/altcore sweep export $(STUDY)
	$(BIN)/altcore report loss-slope-study --from $(or $(SWEEPS),sweeps)/loss-slope-toy/runs --out $(or $(SWEEPS),sweeps)/loss-slope-toy/reports

bench: venv ## measure speed, beside other libraries, which it installs
	@$(PIP) --no-compile 'altcore[bench]'
	$(BIN)/python benchmarks/run.py

exactness: venv ## compare every rounding with independent oracles, and print the mismatches
	$(BIN)/python benchmarks/exactness.py

sweep-toy: venv ## run a toy sweep of 216 jobs in two processes: some five minutes (SWEEPS=folder)
	$(BIN)/altcore sweep plan experiments/toy-sweep.yaml --sweeps-dir $(or $(SWEEPS),sweeps) | tail -1
	time $(BIN)/altcore sweep run experiments/toy-sweep.yaml --executor local:2 --sweeps-dir $(or $(SWEEPS),sweeps)

models: venv ## what recipes reach in the models of docs/models.md, and what stays out
	$(BIN)/python benchmarks/models.py

pages: venv ## write the pages of docs/ that are made of docstrings
	$(BIN)/python tools/run_and_step.py
	$(BIN)/python tools/summary_page.py

notebook: venv ## run a notebook of docs/, and keep what it shows (NOTEBOOK=loss-slope EXPORT=folder)
	$(BIN)/python tools/notebook.py $(NOTEBOOK) $(if $(EXPORT),--export $(EXPORT))

lint: venv ## ruff, mypy, and the directions between the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: venv ## let ruff format the code and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove caches and build outputs; environments and runs/ stay
	rm -rf build dist plugins/*/dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*/*' -prune -exec rm -rf {} +
