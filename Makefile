# Two commands matter: `make serve` and `make test`. Each sets up what it needs and is quick when that is there.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
MODEL ?= smollm2:135m
VENV := .venv
BIN := $(VENV)/bin
# Done once for these versions of the project's requirements and of the pins.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

.PHONY: serve test check lint types layers unit install bench micro clients format clean

serve: install            ## serve the embedded model on http://localhost:39281/v1
	exec $(BIN)/cortex serve $(MODEL)

test: check unit          ## everything that CI checks

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "==> setting up $(VENV); the first time llama.cpp is compiled, which takes some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@# pip is silent while it compiles unless it is verbose; of that we show every tenth step of the compilation
	@$(BIN)/pip install --verbose --constraint constraints.txt llama-cpp-python 2>&1 | tee $(VENV)/llama-build.log \
	    | sed -unE 's/^ *\[([0-9]*0)\/([0-9]+)\].*/    compiled \1 of \2/p; /^Successfully installed/p' \
	    || { tail -n 40 $(VENV)/llama-build.log; exit 1; }
	@echo "==> installing Cortex and its tools"
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[embedded,test]'
	@rm -f $(VENV)/.installed-*
	@touch $@

check: lint types layers

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

unit: install
	$(BIN)/python -m pytest

format: install           ## bring the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

micro: install            ## micro-benchmarks of the step's Python
	$(BIN)/python -m pytest bench/micro --benchmark-enable --benchmark-only

clients: install          ## let well-known clients complete a streamed chat
	@test -x $(VENV)-clients/bin/python || $(PYTHON) -m venv $(VENV)-clients
	@$(VENV)-clients/bin/pip install --quiet --requirement tests/clients/requirements.txt
	$(VENV)-clients/bin/python tests/clients/run.py $(BIN)/cortex

clean:
	rm -rf $(VENV) $(VENV)-clients
