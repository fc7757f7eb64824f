# `make` alone lists the targets.
PYTHON ?= python3
PYTHON312 ?= python3.12
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
PYPI := https://pypi.org/simple
.PHONY: help install install-locked lock audit demo demo-lora demo-losses ablation test test-slow test-all soak test-quantised test-floor lint type contracts check run tensorboard clean

help: ## lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

install: $(INSTALLED) ## makes the environment in .venv and installs mulcot with its tools

lock: $(INSTALLED) ## resolves all packages anew, with hashes, for Python 3.11 and 3.12: requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-header \
		--upgrade --default-index $(PYPI) --quiet --output-file requirements.lock

install-locked: ## makes the environment of requirements.lock, byte for byte, and installs mulcot in it
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $(INSTALLED)

audit: $(INSTALLED) ## known holes of the packages in requirements.lock (ARGS=--unless-offline: none known without a network)
	$(BIN)/python .ci/audit.py $(ARGS)

demo: $(INSTALLED) ## runs the whole chain on the embedded default (ARGS="--teacher openai --yes": another teacher)
	$(BIN)/mulcot run --config demo.yaml $(ARGS)

demo-lora: $(INSTALLED) ## after demo: its trained models as frozen bases under LoRA, merged and asked
	$(BIN)/mulcot run --config demo_lora.yaml

demo-losses: $(INSTALLED) ## after demo: its student with other losses, three seeds each, and what they come to
	$(BIN)/mulcot run --config demo_losses.yaml
	$(BIN)/python -m benchmarks.held_out

ablation: $(INSTALLED) ## after demo: its student with one part of the method left out at a time, three seeds each
	$(BIN)/mulcot run --config demo_ablation.yaml

test: $(INSTALLED) ## the default tests
	$(BIN)/python -m pytest -n 2 --dist loadscope

test-slow: $(INSTALLED) ## the slow tests: whole chains, two processes, the wheel
	$(BIN)/python -m pytest -n 2 --dist loadscope -m slow

test-all: test test-slow ## both

test-quantised: $(INSTALLED) ## the tests of quantised weights, after installing the extra that they need
	$(BIN)/python -m pip install --quiet -e '.[dev,quantised]'
	$(BIN)/python -m pytest -m "slow or not slow" tests/mulcot/models/test_quantisation.py tests/stages/test_quantised_training.py
soak: $(INSTALLED) ## 40 fits killed at random moments and 50 kills while saving: what is resumed is bitwise the same
	MULCOT_KILLS=40 MULCOT_SAVE_KILLS=50 $(BIN)/python -m pytest -s -m "slow or not slow" -k kills \
		tests/stages/test_resuming.py tests/mulcot/test_checkpoints.py

test-floor: ## the default tests on the lower bounds of pyproject.toml with Python 3.12
	$(PYTHON312) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet --upgrade pip
	.venv-floor/bin/python .ci/floors.py pyproject.toml > .venv-floor/floors.txt
	.venv-floor/bin/python -m pip install --quiet -c .venv-floor/floors.txt -e '.[dev]'
	.venv-floor/bin/python -m pytest -n 2 --dist loadscope

lint: $(INSTALLED) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(INSTALLED) ## mypy
	$(BIN)/mypy

contracts: $(INSTALLED) ## import-linter: the arrows between the packages point one way
	$(BIN)/lint-imports

check: lint type contracts ## everything that runs no test

run: $(INSTALLED) ## a chain of your choice: make run CONFIG=my_chain.yaml
	$(BIN)/mulcot run --config $(CONFIG)

tensorboard: $(INSTALLED) ## the losses of all runs
	$(BIN)/tensorboard --logdir runs

clean: ## removes the environment, caches and builds; runs stay
	rm -rf $(VENV) .venv-floor dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
