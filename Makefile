# One line each on a bare machine with Python 3.11 or newer, venv and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: help quickstart test lint docs site bench clean

help:
	@echo "make quickstart  install into $(VENV) and train the quick start (about seven minutes with installing, two cores)"
	@echo "make test        install into $(VENV) and run the tests"
	@echo "make lint        ruff and mypy, as CI runs them"
	@echo "make docs        write docs/configuration_fields.md from the code"
	@echo "make site        build the documentation into build/site; warnings are errors"
	@echo "make bench       time everything on this machine, about half an hour on two cores"
	@echo "make clean       remove $(VENV) and caches; runs/ stays"

# A stamp for each set of extras: pip runs again only when pyproject.toml has changed.
$(VENV)/.installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing [$*] into $(VENV) (a few minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	touch $@

quickstart: $(VENV)/.installed-run
	$(BIN)/python -m experiments.run --config=experiments/configs/quickstart.py

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-run
	$(BIN)/python -m experiments.run --help=markdown >docs/configuration_fields.md.new
	mv docs/configuration_fields.md.new docs/configuration_fields.md

site: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs build/site

bench: $(VENV)/.installed-run
	$(BIN)/python -m experiments.benchmarks.all

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .jax_cache
