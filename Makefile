# The commands of this repository. `make` alone lists them.

# The first that runs and is new enough: a shim of pyenv may only say that it is not installed.
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.11 python3 python3.12 python3.13; do \
  "$$name" -c '$(IS_NEW_ENOUGH)' 2>/dev/null && echo "$$name" && break; done)
VENV ?= .venv
DEMO_DIR ?= demo-data
RUNS_DIR ?= runs
TEST_PROCESSES ?= 2

BIN := $(VENV)/bin
# pip, and not another installer: it uses the machine's own package indexes. It warns if it cannot
# keep a cache, as for a user without a home; an old pip also warns if it runs a setup.py.
HAS_CACHE = cache="$${PIP_CACHE_DIR:-$${XDG_CACHE_HOME:-$$HOME/.cache}/pip}"; \
  mkdir -p "$$cache" 2>/dev/null && test -w "$$cache"
INSTALL = $(BIN)/python -m pip --disable-pip-version-check $(shell $(HAS_CACHE) || echo --no-cache-dir) \
  install --use-pep517 --quiet -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo install check format test test-slow test-container test-cluster bench compile \
  wheel images lock sbom audit release clean

help: ## List the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime $(DEMO_DIR)/train.json ## Learn masks from boxes on generated pictures, through the whole pipeline
	$(BIN)/python -m pipelines run auto_label --output $(RUNS_DIR) \
	  -p train_images=$(DEMO_DIR)/images -p train_annotations=$(DEMO_DIR)/train.json \
	  -p val_images=$(DEMO_DIR)/images -p val_annotations=$(DEMO_DIR)/val.json \
	  -p spec=recipe:demo -p automl_policy=off

$(DEMO_DIR)/train.json: | $(VENV)/.runtime
	$(BIN)/mal dataset demo -o $(DEMO_DIR)

install: $(VENV)/.dev ## Install everything that development needs into .venv

check: $(VENV)/.dev ## Check format, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint images/Containerfile

format: $(VENV)/.dev ## Format, and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(VENV)/.dev ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --durations 12

test-slow: $(VENV)/.dev ## Run the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m "slow and not thorough and not gpu" --durations 12

test-thorough: $(VENV)/.dev ## Run the further cases of the slow tests, before a release
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m "thorough and not gpu"

test-container: $(VENV)/.dev ## Build the images and run them; skipped where Docker cannot run
	PATH=$(CURDIR)/$(BIN):$$PATH OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -m container --timeout 1800 --durations 5 -rs tests/container

test-cluster: $(VENV)/.dev ## Run the scenarios on a real Kubeflow: KFP_HOST=URL NAMESPACE=N, images by MAL_REGISTRY
	@test -n "$(KFP_HOST)" && test -n "$(NAMESPACE)" || { echo >&2 "KFP_HOST and NAMESPACE must name a Kubeflow: make test-cluster KFP_HOST=http://localhost:8888 NAMESPACE=kubeflow"; exit 2; }
	KFP_HOST=$(KFP_HOST) NAMESPACE=$(NAMESPACE) \
	  $(BIN)/python -m pytest -m cluster --timeout 900 --durations 0 -rs tests/real_cluster

bench: $(VENV)/.dev ## Measure against the literal algorithm (CASE=name for one); writes docs/performance.md
	$(BIN)/python tests/bench/run.py $(CASE)

compile: $(VENV)/.runtime ## Write every generated file: schemas, compiled components and pipelines, READMEs, example jobs
	$(BIN)/mal schema -o mal/metadata
	$(BIN)/python -m components
	$(BIN)/python -m components._example_jobs
	$(BIN)/python -m pipelines compile

wheel: $(VENV)/.dev ## Build the wheel into dist/
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

images: ## Build the images: REGISTRY=, TAG=, BASE_IMAGE=; images/README.md has the rest
	images/build

lock: $(VENV)/.release ## Lock anew what the images install; TORCH=cpu for another variant
	PATH=$(CURDIR)/$(BIN):$$PATH images/lock

sbom: ## List what the built images hold: dist/sbom/*.cdx.json and docs/licences.md
	images/list-content

audit: $(VENV)/.release ## Look the locked packages up among the known vulnerabilities
	cat images/locks/torch-cuda.txt images/locks/train.txt images/locks/component.txt \
	  images/locks/sdists.txt | $(BIN)/pip-audit --strict --disable-pip --no-deps -r /dev/stdin

release: $(VENV)/.dev ## Build and push a release to REGISTRY: wheel, images, SBOMs, pipelines by digest; docs/release.md
	@test -n "$(REGISTRY)" || { echo >&2 "REGISTRY must name the registry to push to: make release REGISTRY=HOST/PATH"; exit 2; }
	$(MAKE) wheel images sbom
	images/push > images.lock
	$(BIN)/mal pipelines compile -o dist/pipelines --registry $(REGISTRY) --digests images.lock

clean: ## Remove what was made here, but not .venv
	rm -rf $(DEMO_DIR) $(RUNS_DIR) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

$(BIN)/python:
	@"$(PYTHON)" -c '$(IS_NEW_ENOUGH)' 2>/dev/null || { echo >&2 \
	  "MAL needs Python 3.11 or newer, got $(or $(PYTHON),none). Install it, or name one: make PYTHON=FILE"; exit 2; }
	@"$(PYTHON)" -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV): some minutes, most of them for PyTorch"
	@$(INSTALL) -e '.[kfp,export,automl]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.runtime

$(VENV)/.release: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[release]'
	touch $@
