# `make demo` and `make test` do all the set-up; everything else is for contributors.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint types peers clean

demo: $(VENV)/.ready
	$(BIN)/surefoot demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest

lint: $(VENV)/.ready
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

types: $(VENV)/.ready
	$(BIN)/mypy

# The environments of the peers that benchmarks run against. What stands in a file …-bare.txt is installed without what it depends on.
peers-%/.ready: benchmarks/peers/requirements-%.txt
	$(PYTHON) -m venv peers-$*
	peers-$*/bin/pip install --quiet -r $< -c benchmarks/peers/constraints.txt
	test ! -f benchmarks/peers/requirements-$*-bare.txt || peers-$*/bin/pip install --quiet --no-deps -r benchmarks/peers/requirements-$*-bare.txt
	touch $@

peers: peers-sb3/.ready peers-sbx/.ready peers-rejax/.ready peers-trl/.ready peers-trl-ppo/.ready peers-agreement/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) peers-* .mypy_cache .ruff_cache .pytest_cache
