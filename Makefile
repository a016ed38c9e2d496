# Everything runs in a virtual environment of its own, .venv, which the first target makes. Needed: Python 3.10 to 3.13 and make.
#   make PYTHON=python3.12 test       another Python (for a .venv that is there already: make clean first)
#   make test ARGS="-k shm -n 0"      more arguments for the program behind a target

PYTHON ?= python3
# What to install, extras of setup.cfg: to train and enjoy an agent, and for all other targets
TRAIN_EXTRAS := popgym,plots,zoo,hub
EXTRAS ?= $(TRAIN_EXTRAS),export,docs,dev
# What to install as torch
TORCH ?= torch
ARGS ?=
# Which programs `make benchmark` runs, one after the other
BENCHMARKS ?= $(sort $(wildcard benchmarks/*.py))
# What people write in Markdown; programs write the rest
PAGES := README.md CHANGELOG.md CONTRIBUTING.md docs/*.md docs/api

VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED_TO_TRAIN := $(VENV)/.installed_to_train
INSTALLED := $(VENV)/.installed
# ray[rllib] asks for a version of gymnasium of its own, and so for an environment of its own
RLLIB_VENV := .venv-rllib
RLLIB_RUN := $(RLLIB_VENV)/bin/python
RLLIB_INSTALLED := $(RLLIB_VENV)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help train test test-slow test-rllib lint format type docs dist benchmark clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# torch goes first and alone: resolved together with the rest, pip may look at several of its builds, each of gigabytes.
# Without a GPU, TORCH=<a CPU build of torch, as pytorch.org names it> saves the download of CUDA
$(INSTALLED_TO_TRAIN): setup.cfg pyproject.toml constraints.txt
	@echo "Installing into $(VENV), which takes some minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet -c constraints.txt $(TORCH)
	@$(RUN) -m pip install --quiet -c constraints.txt -e ".[$(TRAIN_EXTRAS)]"
	@touch $@

$(INSTALLED): $(INSTALLED_TO_TRAIN)
	@echo "Installing what tests and documentation need, too"
	@$(RUN) -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

train: $(INSTALLED_TO_TRAIN) ## Train an agent with memory on a POPGym task and show its score
	@$(RUN) examples/train_popgym.py $(ARGS)

# As many processes as there are cores; ARGS="-n 0" for one, in which a debugger works
test: $(INSTALLED) ## Run the tests, except the slow ones
	@$(RUN) -m pytest -q -n auto -m "not slow" $(ARGS)

test-slow: $(INSTALLED) ## Run the slow tests: whole trainings
	@$(RUN) -m pytest -q -m slow $(ARGS)

$(RLLIB_INSTALLED): setup.cfg pyproject.toml constraints-rllib.txt
	@echo "Installing into $(RLLIB_VENV), which takes some minutes"
	@$(PYTHON) -m venv $(RLLIB_VENV)
	@$(RLLIB_RUN) -m pip install --quiet -c constraints-rllib.txt $(TORCH)
	@$(RLLIB_RUN) -m pip install --quiet -c constraints-rllib.txt -e ".[rllib,experiments]" pytest hypothesis
	@touch $@

test-rllib: $(RLLIB_INSTALLED) ## Run the tests of the policy in RLlib, in an environment of their own
	@$(RLLIB_RUN) -m pytest -q tests/test_rllib.py $(ARGS)

lint: $(INSTALLED) ## Check style and format
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m ruff format --quiet --diff .
	@$(RUN) -m mdformat --check $(PAGES)

format: $(INSTALLED) ## Put the sources into the format that `make lint` asks for
	@$(RUN) -m ruff check --quiet --fix .
	@$(RUN) -m ruff format .
	@$(RUN) -m mdformat $(PAGES)

type: $(INSTALLED) ## Check the types
	@$(RUN) -m mypy $(ARGS)

docs: $(INSTALLED) ## Build the documentation, in docs/_build/html; a warning is an error
	@$(RUN) -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build/html $(ARGS)

dist: $(INSTALLED) ## Build wheel and sdist, in dist/, and check them as an index would
	@rm -rf dist
	@$(RUN) -m build --outdir dist
	@$(RUN) -m twine check --strict dist/*

benchmark: $(INSTALLED) ## Measure the speed of memories and algorithms
	@set -e; for program in $(BENCHMARKS); do echo "== $$program"; $(RUN) $$program $(ARGS); done

clean: ## Remove the virtual environment, caches and builds
	@rm -rf $(VENV) $(RLLIB_VENV) build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -not -path "./.git/*" -exec rm -rf {} +
