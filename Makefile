# The only commands to know: make demo, make test, make check, make bench. Each works on a fresh machine that has
# Python 3.11 or later and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes of the suite. On two cores a third one gains next to nothing.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test check bench constraints clean

help:
	@echo "make demo    the whole loop on real flights, in a temporary home"
	@echo "make test    all tests (starts a PostgreSQL of its own)"
	@echo "make check   lint, types, import contracts, documented commands"
	@echo "make bench   speed and size beside their limits"

install: $(VENV)/.installed

# Installs again when what is to be installed has changed.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("loopwright needs Python 3.11 or later; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/loopwright demo flights

test: install
	scripts/test-services
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/unit/house

bench: install
	$(BIN)/python -m benchmarks

# Pins every dependency at its newest allowed version; review the difference before committing it.
constraints: install
	$(BIN)/python scripts/constraints

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
