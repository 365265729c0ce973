# What developers, CI and packagers do; `make help` lists it. Needs Python 3.10 or later with venv, and nothing else.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
# python3, or else the newest Python found; PYTHON=… chooses another.
PYTHON ?=
IP ?= 127.0.0.1
PORT ?= 8888
ARGS ?=
SECONDS ?= 180
SEED ?=
# Processes that run tests side by side; 0 runs them in one, so that ARGS may ask for a debugger.
WORKERS ?= 2
DIST := dist

BIN := $(VENV)/bin
# The gateway refuses kernels to root unless told otherwise; whoever runs this as root has only that user.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--EnterpriseGatewayApp.unauthorized_users=[])
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help env activate clean clean-env run run-dev test test-debug chaos fuzz audit lint format docs bench bdist sdist dist \
	test-install test-install-wheel test-install-tar check_dists

help: ## list the targets
	@awk -F ':.*## ' '/^[a-zA-Z_-]+:.*## / { printf "%-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- environments: one stamp file per set of packages, renewed when pyproject.toml changes ---

$(BIN)/python:
	@bash scripts/make-venv.sh "$(VENV)" "$(PYTHON)"

$(VENV)/.installed-%: $(BIN)/python pyproject.toml
	@echo "Installing into $(VENV) (extra: $*) ..."
	@$(INSTALL) --editable '.[$*]'
	@touch $@

env: $(VENV)/.installed-local $(VENV)/.installed-test $(VENV)/.installed-lint ## make the development environment in .venv

activate: ## print how to activate the environment
	@echo "source $(BIN)/activate"

clean: ## remove what building and testing left
	rm -rf build $(DIST) site docs/_build *.egg-info .coverage* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-env: ## remove the environment
	rm -rf $(VENV)

# --- run ---

run: $(VENV)/.installed-local ## serve a Python kernel at http://127.0.0.1:8888 (PORT=… IP=… ARGS=…)
	@echo
	@echo "  The gateway will be at   http://$(IP):$(PORT)    (stop it with Ctrl-C)"
	@echo "  Connect JupyterLab with  jupyter lab --gateway-url=http://$(IP):$(PORT)"
	@echo
	@PATH="$(abspath $(BIN)):$$PATH" exec jupyter enterprisegateway --ip=$(IP) --port=$(PORT) --port_retries=0 \
		--log-level=INFO --EnterpriseGatewayApp.list_kernels=True $(AS_ROOT) $(ARGS)

run-dev: ARGS += --debug
run-dev: run ## the same with debug messages

# --- check ---

test: $(VENV)/.installed-test ## run the tests (ARGS=… for pytest)
	@$(if $(ARGS),,echo "On two processors all tests take about 7 minutes, and about 25 with all programs that some of them drive.")
	@$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder $(ARGS)

chaos: $(VENV)/.installed-test ## let three replicas, their database and kernels fail (SECONDS=… SEED=…)
	@CHAOS_SECONDS=$(SECONDS) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest --capture=no tests/chaos $(ARGS)

fuzz: $(VENV)/.installed-test ## give each decoder of outsiders' bytes new inputs (SECONDS=… for each)
	@FUZZ_SECONDS=$(SECONDS) $(BIN)/python -m pytest --numprocesses=$(WORKERS) tests/fuzz $(ARGS)

test-debug: WORKERS = 0
test-debug: ARGS += -vv --capture=no --log-cli-level=DEBUG
test-debug: test ## run the tests with all that they say

lint: $(VENV)/.installed-lint ## ruff, mypy and import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

audit: $(VENV)/.installed-audit ## bandit, and known vulnerabilities of the installed packages
	@$(BIN)/python -m bandit --quiet --severity-level=medium --confidence-level=medium --skip=B104 \
		--recursive enterprise_gateway etc
	@$(BIN)/python scripts/audit_packages.py

format: $(VENV)/.installed-lint ## let ruff correct and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(VENV)/.installed-docs ## build the documentation into docs/_build/html; warnings are errors
	@$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/.installed-local ## measure the gateway against its peers
	@$(BIN)/python benchmarks/run.py $(ARGS)

# --- distribute ---

bdist: $(VENV)/.build-tool ## build the wheel
	@$(BIN)/python -m build --wheel --outdir $(DIST) .

sdist: $(VENV)/.build-tool ## build the source archive
	@$(BIN)/python -m build --sdist --outdir $(DIST) .

dist: sdist bdist ## build both

check_dists: dist ## build both and check their metadata
	@$(INSTALL) twine
	@$(BIN)/python -m twine check --strict $(DIST)/*

test-install-wheel: bdist ## install the wheel into an environment of its own and start it
	@bash scripts/test-install.sh "$(PYTHON)" $(DIST)/jupyter_enterprise_gateway-*.whl

test-install-tar: sdist ## the same with the source archive
	@bash scripts/test-install.sh "$(PYTHON)" $(DIST)/jupyter_enterprise_gateway-*.tar.gz

test-install: test-install-wheel test-install-tar ## both

$(VENV)/.build-tool: $(BIN)/python
	@$(INSTALL) build
	@touch $@
