# Each target sets up what it needs: python3 with venv and make are all that a fresh machine has to have.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .venv-peers

.PHONY: help venv demo proof test lint types layers size peers bench bench-full clean

help: ## show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

venv: $(READY) ## make the virtual environment with everything that development needs

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY) ## hold conversations in several processes, kill and stop some, and see that nothing was lost (INPUT=file)
	$(BIN)/python demo/run.py $(if $(INPUT),--input '$(INPUT)') $(if $(DATABASE),--database '$(DATABASE)')

proof: $(READY) ## 8 workers, 500 sessions, 5,000 inputs, with kills, stops and crashes, on both engines
	$(BIN)/python -m tests.proof --engine sqlite
	$(BIN)/python -m tests.proof --engine postgres

test: $(READY) ## run the whole test suite, in three processes beside each other
	$(BIN)/python tools/suite.py

lint: $(READY) ## ruff, docstrings, layering, size limits
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/interrogate --quiet src
	$(BIN)/lint-imports
	$(BIN)/python tools/sizes.py

types: $(READY) ## mypy, strict
	$(BIN)/mypy

$(PEERS)/.ready: bench/requirements-peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# Without the peers the benchmark runs all the same, and its page says who is missing.
peers:
	-$(MAKE) $(PEERS)/.ready

bench: $(READY) peers ## measure shortly, in ten minutes or so; writes bench/results.json and docs/benchmarks.md
	$(BIN)/python -m bench.run

bench-full: $(READY) peers ## the same with more rounds, larger sizes and every part
	$(BIN)/python -m bench.run --full

clean: ## remove what was made here
	rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
