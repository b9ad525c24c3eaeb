# Two commands a newcomer needs: `make serve` and `make test`. CI calls the same targets.
PYTHON ?= python3
PORT ?= 8000
SERVE := .venv
DEV := .venv-dev
PEERS := .venv-peers
GPU := .venv-gpu
RAY := .venv-ray
TOOLS := .venv-tools
ENGINE ?= docker
IMAGE ?= gpt2-mt
OUT ?= build/demo
BENCH ?= build/bench

.PHONY: serve test stress check demo bench test-gpu bench-gpu test-ray image test-image lock sbom audit clean

serve: $(SERVE)/.ready  ## install what serving needs and serve the bundled model
	$(SERVE)/bin/gpt2-mt serve --port $(PORT)

test: $(DEV)/.ready  ## install what tests need and run them, on the CPU
	$(DEV)/bin/python -m pytest -q

stress: $(DEV)/.ready  ## real servers under overload, signals, kills, a long load: 20 minutes, build/stress.md
	$(DEV)/bin/python -m pytest -q -s -m stress tests/stress

check: $(DEV)/.ready  ## lint and types
	$(DEV)/bin/ruff check .
	$(DEV)/bin/mypy app export training gpt2_mt

demo: $(DEV)/.ready  ## the whole pipeline, small: corpus to translation in under 3 minutes
	rm -rf $(OUT)
	$(DEV)/bin/python -m tests.toy $(OUT)/corpus
	$(DEV)/bin/gpt2-mt build demo --threads 1 --corpus $(OUT)/corpus --tests $(OUT)/corpus/tests --out $(OUT)
	$(DEV)/bin/gpt2-mt translate --bundle $(OUT)/bundle --source en --target de 'The doctor sells some bread today.'

# Ours is served by the environment of `make serve`; the others live in one of their own.
bench: $(SERVE)/.ready $(PEERS)/.ready  ## serving beside its peers, an idle machine for 40 minutes
	-$(PEERS)/bin/pip install --quiet llama-cpp-python==0.3.36
	$(PEERS)/bin/python -m benchmarks.peers --out $(BENCH)
	for model in bundled 32k; do for precision in int8 fp32; do \
	  $(PEERS)/bin/python -m benchmarks.engine_profile --operators --out $(BENCH) \
	    --bundle $(BENCH)/models/$$model/$$precision || exit 1; done; done
	$(PEERS)/bin/python -m benchmarks.overhead --out $(BENCH) --server-python $(SERVE)/bin/python
	$(PEERS)/bin/python -m benchmarks.footprint --out $(BENCH) --server-python $(SERVE)/bin/python
	for kind in translate generate; do $(PEERS)/bin/python -m benchmarks.load --kind $$kind \
	  --out $(BENCH) --server-python $(SERVE)/bin/python || exit 1; done
	tail -n +1 $(BENCH)/*.md

test-gpu: $(GPU)/.ready  ## the tests that need an NVIDIA GPU
	$(GPU)/bin/python -m pytest -q -m gpu

bench-gpu: $(GPU)/.ready  ## tokens/s on a GPU beside transformers, and the share of its bandwidth
	$(GPU)/bin/python -m benchmarks.gpu --out $(BENCH)

# podman and buildah keep the health check in this format only.
image:  ## the server as an image, by docker, podman or buildah
	BUILDAH_FORMAT=docker $(ENGINE) build --tag $(IMAGE) --build-arg REVISION=$$(git rev-parse HEAD) .

test-image: $(DEV)/.ready  ## that image in a container without network or privilege
	IMAGE=$(IMAGE) $(DEV)/bin/python -m pytest -q -rs tests/docker/test_image.py

test-ray: $(RAY)/.ready  ## the tests of several replicas on Ray, in an environment of its own
	$(RAY)/bin/python -m pytest -q tests/app/commands/test_ray.py

# What stands in the files is kept where pyproject.toml allows it; --upgrade-package NAME==VERSION changes one.
LOCKED := $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-annotate --no-header $(LOCK)

lock: $(TOOLS)/.ready  ## pin pyproject's packages for the server and the image, with hashes
	$(LOCKED) pyproject.toml --extra cpu --output-file docker/requirements-serve.txt
	$(LOCKED) pyproject.toml --extra cpu --extra derive --constraint docker/requirements-serve.txt \
	  --output-file docker/requirements-derive.txt
	$(LOCKED) pyproject.toml --extra gpu --constraint docker/requirements-serve.txt \
	  --output-file docker/requirements-gpu.txt
	$(LOCKED) pyproject.toml --extra cpu --extra client --extra ray --constraint docker/requirements-serve.txt \
	  --output-file docker/requirements-ray.txt
	$(LOCKED) docker/requirements-build.in --output-file docker/requirements-build.txt

sbom: $(SERVE)/.ready $(TOOLS)/.ready  ## what the serving environment holds, as CycloneDX
	mkdir -p build
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-format JSON --output-file build/sbom.json $(SERVE)/bin/python

audit: $(TOOLS)/.ready  ## known vulnerabilities of the serving packages; asks a public service
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --requirement docker/requirements-serve.txt \
	  $$(sed -n 's/^\([A-Z][^ #]*\).*/--ignore-vuln \1/p' docker/audit-ignored.txt)

# A virtual environment from the first prerequisite, its pinned requirements.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gpt2-mt needs Python 3.11 or newer: give make PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --requirement $<
	$(@D)/bin/pip install --quiet --no-deps --editable .
	touch $@
endef

$(SERVE)/.ready: docker/requirements-serve.txt pyproject.toml
	$(install)

$(DEV)/.ready: docker/requirements-dev.txt pyproject.toml
	$(install)

$(RAY)/.ready: docker/requirements-ray.txt pyproject.toml
	$(install)
	$(@D)/bin/pip install --quiet "$$(grep '^pytest==' docker/requirements-dev.txt)"

$(TOOLS)/.ready: docker/requirements-tools.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --requirement $<
	touch $@

$(GPU)/.ready: build/requirements-gpu.txt pyproject.toml
	$(install)

# Those of the tests, with the runtime for GPUs in the other's place.
build/requirements-gpu.txt: docker/requirements-dev.txt
	mkdir -p $(@D)
	sed 's/^onnxruntime==.*/onnxruntime-gpu==1.31.1/' $< > $@

$(PEERS)/.ready: benchmarks/requirements-peers.txt docker/requirements-dev.txt pyproject.toml
	$(install)

clean:
	rm -rf $(SERVE) $(DEV) $(PEERS) $(GPU) $(RAY) $(TOOLS) build .mypy_cache .ruff_cache .pytest_cache
