# hami-framework: `make demo` shows it, `make test` proves it. Both build all they need; `make help` lists the rest.
# Needs: Python >= 3.11 with venv, gcc, make. No GPU, no Kubernetes, no root.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VENDORS := nvidia ascend cambricon hygon
WORKERS ?= 2
NATIVE := $(foreach v,$(VENDORS),vendors/$(v)/hami_$(v)/lib/libhami_$(v).so)
NATIVE_SOURCES := $(wildcard interceptors/core/* interceptors/spec/*.toml interceptors/shim/*/* interceptors/gen/hami_interceptor/*.py)

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | while IFS="$$(printf '\t')" read -r name text; do printf '  %-14s %s\n' "$$name" "$$text"; done

.PHONY: venv
venv: $(STAMP) native ## a ready .venv with the core, the four vendors and their interceptors

.PHONY: native
native: $(NATIVE) ## the four vendors' interceptors, where an editable installation looks for them

$(NATIVE): $(STAMP) $(NATIVE_SOURCES)
	$(BIN)/python -m hami_interceptor project vendors/$(word 2,$(subst /, ,$@))

$(STAMP): requirements/dev.txt pyproject.toml interceptors/pyproject.toml $(VENDORS:%=vendors/%/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hami-framework needs Python >= 3.11; name one with make PYTHON=python3.x" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e interceptors
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . $(VENDORS:%=-e vendors/%)
	@touch $@

.PHONY: demo
demo: venv ## a mixed-vendor cluster in one process tree: who got what, and why not
	@$(BIN)/hami demo

.PHONY: test
test: lint ## everything `main` must pass, with seeded, reduced random suites
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

.PHONY: test-deep
test-deep: venv ## the random and fuzz suites with their stated counts
	HAMI_TEST_DEEP=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "deep or slow" --timeout 1200

# Neither the venv nor a network: a machine with a GPU may have Python, gcc and the driver alone. 77: it did not run, and has said so.
.PHONY: test-gpu
test-gpu: ## the interceptor on a real NVIDIA GPU, and build/gpu-report.md; where there is none it says that it did not run
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make test-gpu needs Python >= 3.11; name one with make PYTHON=python3.x" >&2; exit 1; }
	@$(PYTHON) interceptors/tests/gpu/run.py $(GPU) || { status=$$?; test $$status -eq 77 || exit $$status; }

.PHONY: lab
lab: venv ## build the programs of a real Kubernetes from Go modules (12 minutes the first time; needs Go, gcc, libseccomp's headers)
	$(BIN)/python -m e2e.lab build

.PHONY: cluster
cluster: venv ## a real one-node Kubernetes with the framework and fake accelerators of four vendors (root, Linux; builds it first)
	@$(BIN)/python -m e2e.lab.install

.PHONY: cluster-down
cluster-down: ## end what `make cluster` started, and nothing else
	@$(BIN)/python -m e2e.lab down

.PHONY: e2e
e2e: venv ## the end-to-end suite on a real cluster of the newest Kubernetes (root, Linux; builds it first)
	@$(BIN)/python -m e2e.run

.PHONY: e2e-all
e2e-all: venv ## the same on each Kubernetes of e2e/lab/versions.toml
	@$(BIN)/python -m e2e.run --all

.PHONY: lint
lint: venv ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy hami_framework benchmarks e2e interceptors/gen/hami_interceptor $(foreach v,$(VENDORS),vendors/$(v)/hami_$(v))
	$(BIN)/lint-imports
	$(BIN)/python -m hami_interceptor layout --check

.PHONY: fix
fix: venv ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: generate
generate: venv ## the gRPC stubs, from the protos in the tree; the shared files' layout, from its table
	$(BIN)/python -m hami_interceptor layout
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. hami_framework/kubelet_api/*.proto

.PHONY: coverage
coverage: venv ## per driver API and version: exported, classified, must_hook, hooked, tested; fails while a symbol has no class
	$(BIN)/python -m hami_interceptor coverage

.PHONY: bench
bench: venv ## the three benchmarks; figures and budgets stand in docs/benchmarks.md
	$(BIN)/python -m benchmarks.filter --nodes 5000 --devices 8 --pods 40000
	$(BIN)/python -m benchmarks.agent
	$(BIN)/python -m benchmarks.plugins

.PHONY: bench-interceptor
bench-interceptor: venv ## what the interceptor costs and how well it holds (8 minutes; best on a quiet machine), as in docs/benchmarks.md
	$(BIN)/python -m benchmarks.interceptor

.PHONY: wheels
wheels: venv ## sdist and wheel of the core, the interceptor SDK and of each vendor, in build/dist
	for project in . interceptors $(VENDORS:%=vendors/%); do $(BIN)/python -m build --no-isolation --outdir build/dist $$project || exit 1; done

.PHONY: lock
lock: ## renew requirements/dev.txt from dev.in, and runtime.txt (what images hold) at the same versions (needs uv on the PATH)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header requirements/dev.in -o requirements/dev.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --constraint requirements/dev.txt requirements/runtime.in -o requirements/runtime.txt

.PHONY: manifests
manifests: venv ## the chart's CRD and deploy/manifests, from what they are made of (needs helm: on the PATH, HELM=…, or make lab)
	$(BIN)/python deploy/render.py

.PHONY: clean
clean: ## remove what was built
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis $(dir $(NATIVE))
