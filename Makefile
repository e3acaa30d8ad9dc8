# One short command a verb. Each does the set-up that it needs: a machine with Python 3.11, git and make is enough.

PYTHON ?= $(or $(shell command -v python3.11),python3)
PROFILE ?= embedded
VENV := .venv
PYTEST := pytest --numprocesses auto --maxprocesses 4 --dist loadfile
READY := $(VENV)/.ready

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export GIT_PYTHON_REFRESH := quiet
export HF_HUB_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help setup try repro profile test slow fuzz lint ablations bench report ui serve up down clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Install everything into .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed; name it: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

try: $(READY) ## Draw with the released models, no training needed: the first thing to type
	m2m try

repro: $(READY) ## Make what is stale: data, models, evaluation, report; as `dvc repro`, but stages side by side
	python -m flows.side_by_side
	@echo
	@echo "Done. Three things to open next:"
	@echo "  the report       reports/index.html"
	@echo "  the runs         make ui"
	@echo "  a first sample   .venv/bin/m2m sample --model models/m2m-dino --images YOUR.jpg --num-images 6 --out out"

profile: $(READY) ## Make PROFILE (embedded, smoke, full, gpu, paper) the active parameters
	cp profiles/$(PROFILE).yaml params.yaml

test: $(READY) ## Lint, types, layers, all tests but the slow ones; which lines they reach: TEST="--cov --cov-report=term"
	ruff check .
	lint-imports --no-logo
	@# Types beside the tests; what they say comes last.
	@said=$$(mktemp); mypy > $$said 2>&1 & types=$$!; \
		$(PYTEST) -m "not slow" $(TEST); tests=$$?; \
		wait $$types; types=$$?; cat $$said; rm $$said; exit $$((tests + types))

slow: $(READY) ## The slow tests: a whole pipeline in a browser, servers, what is killed, what takes more than some seconds
	$(PYTEST) -m slow --timeout=600 $(TEST)

fuzz: $(READY) ## Give each reader of foreign bytes ten thousand damaged files
	MUTATIONS=10000 $(PYTEST) -m fuzz --timeout=3600 $(TEST)

lint: $(READY) ## Lint, types, layers
	ruff check .
	mypy
	lint-imports --no-logo

ablations: $(READY) ## Train and measure what ablations/ablations.yaml lists, resumes; one row: ONLY="guidance 1"
	python -m ablations $(if $(ONLY),--only "$(ONLY)")

bench: $(READY) ## Measure speed against goals: BENCH="--device cuda --scale sd21" on a GPU
	python -m benchmarks $(BENCH)

report: $(READY) ## Make the report, and what it needs
	dvc repro report
	@echo "reports/index.html"

ui: $(READY) ## Open MLflow on this machine: http://127.0.0.1:5000
	python -m infra.ui $(PORT)

serve: $(READY) ## Offer the flows on the Prefect server that PREFECT_API_URL names
	python -m flows.deploy serve

up: $(READY) ## Start Prefect, MLflow, S3 and the flows on this machine, and wait until they are healthy
	@python -m infra.local up

down: $(READY) ## End what make up started
	@python -m infra.local down

clean: ## Remove what can be made again: results and caches (not .venv, the object store, DVC's cache, runs or their spool)
	rm -rf build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find work -mindepth 1 -maxdepth 1 ! -name spool -exec rm -rf {} + 2>/dev/null || true
	rm -rf out reports models/m2m-* data/captions.parquet* data/mis.* data/nvs.* data/vpg.*
	find ablations benchmarks flows infra m2m tests -name __pycache__ -type d -prune -exec rm -rf {} +
