# Everything runs in .venv, made by the first target that needs it. PYTHON must be 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The demo's own, made anew where they are old: not to be set to a folder of yours, which MODEL is for.
override RUN := runs/support2
override BUNDLE := bundles/support2
PORT ?= 3000
# Who may reach what `make serve` starts: 0.0.0.0 for all, who need no key unless I2MOE_API_KEYS says so.
HOST ?= 127.0.0.1
ACCELERATOR ?= cpu
IMAGE ?= i2moe-service:$(ACCELERATOR)
BUNDLE_IMAGE ?= i2moe-bundle:1.0.0
# The bundle that is served, becomes an image and is tried; the demo's is made when it is not there.
MODEL ?= $(BUNDLE)
# docker or podman; more options for its `build`; other bases than the Dockerfiles'.
ENGINE ?= docker
BUILD_FLAGS ?=
PYTHON_IMAGE ?=
BUSYBOX_IMAGE ?=
# podman leaves the health check out of its own format, and caches layers only when told.
BUILD := $(ENGINE) build $(if $(findstring podman,$(ENGINE)),--format docker --layers) $(BUILD_FLAGS)

export BENTOML_DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test check format bench image bundle-image try-image bento constraints requirements hashes sbom audit clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, found " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(VENV)/.installed ## the environment, with pinned versions

$(RUN)/report.html: | setup
	$(BIN)/python -m training fit training/recipes/support2.toml --out $(RUN) --resume

$(BUNDLE)/manifest.json: $(RUN)/report.html
	rm -rf $(BUNDLE)
	$(BIN)/python -m export $(RUN) --out $(BUNDLE)

demo: setup $(BUNDLE)/manifest.json ## train on real patients, export, serve on :3000, explain one patient, keep serving
	$(BIN)/python -m examples.demo --run $(RUN) --bundle $(BUNDLE) --port $(PORT)

serve: setup $(MODEL)/manifest.json ## serve a bundle: MODEL=path, by default the demo's
	BENTOML_HOME=$${BENTOML_HOME:-$$(mktemp -d)} I2MOE_BUNDLE=$(MODEL) $(BIN)/bentoml serve service.api:I2MoEService --host $(HOST) --port $(PORT)

test: setup ## the whole test suite
	$(BIN)/python -m pytest

check: setup ## lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## rewrite the code in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## SUPPORT2: I2MoE, its backbone alone, LightGBM, logistic regression; last line JSON
	$(BIN)/python -m benchmarks.results training/recipes/support2.toml --only "transformer|decomposition" --out runs/results/support2 \
	  --variants training/recipes/variants/objectives.toml --variants training/recipes/variants/backbones.toml

bento: setup ## a Bento (needs no network)
	$(BIN)/bentoml build

# Version and commit are no build arguments: buildah 1.28 takes a LABEL that names one from its cache, with the value of before.
image: ## container image; ACCELERATOR=cpu or cuda
	$(BUILD) $(if $(PYTHON_IMAGE),--build-arg PYTHON_IMAGE=$(PYTHON_IMAGE)) --build-arg ACCELERATOR=$(ACCELERATOR) \
	  --label org.opencontainers.image.version=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
	  --label org.opencontainers.image.revision=$$(git rev-parse HEAD) --tag $(IMAGE) .

bundle-image: $(MODEL)/manifest.json ## a bundle as an image, for Kubernetes: MODEL=path, by default the demo's
	$(BUILD) $(if $(BUSYBOX_IMAGE),--build-arg BUSYBOX_IMAGE=$(BUSYBOX_IMAGE)) --file deploy/kubernetes/bundle/Dockerfile --tag $(BUNDLE_IMAGE) $(MODEL)

try-image: setup image bundle-image ## build both images, run them locked down, look inside, stop them; last line JSON
	$(BIN)/python -m deploy.image $(IMAGE) --bundle $(MODEL) --bundle-image $(BUNDLE_IMAGE) --engine $(ENGINE)

constraints: ## pin what is installed in .venv now
	@{ head -n 2 constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' | sort -f; } > constraints.new
	@mv constraints.new constraints.txt

requirements: ## pin the service's own environment, without torch, under constraints.txt
	@rm -rf build/service-env && $(PYTHON) -m venv build/service-env
	build/service-env/bin/pip install --quiet -c constraints.txt ".[audit,traces]"
	@{ head -n 2 requirements.txt; build/service-env/bin/pip freeze | grep -v '^i2moe'; } > requirements.new
	@mv requirements.new requirements.txt && rm -rf build/service-env
	@$(MAKE) hashes

hashes: setup ## the hashes of every file that requirements.txt, and for CUDA what ONNX Runtime asks for, may be installed from
	@{ head -n 2 requirements.hashes.txt; $(BIN)/uv pip compile requirements.txt --generate-hashes --no-deps --universal \
	  --python-version 3.11 --no-annotate --no-header --quiet; } > requirements.hashes.new
	@mv requirements.hashes.new requirements.hashes.txt
	@{ head -n 2 requirements.cuda.hashes.txt; echo 'onnxruntime-gpu[cuda,cudnn]' | $(BIN)/uv pip compile - --constraint requirements.txt \
	  $$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/--no-emit-package \1/p' requirements.txt) --generate-hashes --universal \
	  --python-version 3.11 --no-annotate --no-header --quiet; } > requirements.cuda.hashes.new
	@mv requirements.cuda.hashes.new requirements.cuda.hashes.txt

# Tools that look at the service's environment have environments of their own, so that they change nothing in it.
build/tools:
	$(PYTHON) -m venv build/tools && build/tools/bin/pip install --quiet cyclonedx-bom pip-audit

build/deployed: requirements.hashes.txt
	rm -rf build/deployed && $(PYTHON) -m venv --without-pip build/deployed
	$(BIN)/uv pip install --quiet --python build/deployed --require-hashes -r requirements.hashes.txt

sbom: build/tools build/deployed ## what the service consists of, with licences: build/sbom.cdx.json (CycloneDX)
	build/tools/bin/cyclonedx-py environment build/deployed --pyproject pyproject.toml --output-reproducible --output-file build/sbom.cdx.json

audit: build/tools ## known vulnerabilities of the service's packages; asks a public database (another: AUDIT_FLAGS)
	build/tools/bin/pip-audit --requirement requirements.hashes.txt --require-hashes --disable-pip --strict $(AUDIT_FLAGS)

clean: ## remove runs, bundles and caches; .venv stays
	rm -rf runs bundles build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
