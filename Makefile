# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
# Where pip looks for torch; set it to the index of CPU builds where there is no GPU (see README).
TORCH_INDEX ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo cards test lint types stubs check clean

demo: .venv/.demo
	$(BIN)/hf-compact demo

# The cards in model_cards/; STS=FILE adds the STS benchmark (see the script).
cards: .venv/.demo
	$(BIN)/python -m benchmarks.cards $(if $(STS),--sts $(STS))

test: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.test
	$(BIN)/mypy

# The classes that are made on demand, as type checkers see them; to be made anew for another Transformers.
stubs: .venv/.test
	$(BIN)/python -m tests.stubs.make

check: lint types test

.venv/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --constraint constraints.txt torch
	touch $@

.venv/.demo: .venv/.torch pyproject.toml
	$(PIP) install --constraint constraints.txt --editable '.[demo]'
	touch $@

.venv/.test: .venv/.demo
	$(PIP) install --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache
