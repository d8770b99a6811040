# Doors of the project. `make run` and `make test` install what they need; everything made is under .venv/ and build/.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=

NATIVE := setup.py $(wildcard native/*.py native/*.cdef native/include/*.h native/src/*.c native/src/*.h)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests start hundreds of programs, and each would compile our modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run demo test check docs run-table format native-test interop bench bench-quick gate clean

help:
	@echo "make run      build what is missing and run a relay until Ctrl-C"
	@echo "make demo     relay, listener and sender once: a 256 MiB file with its checksum"
	@echo "make test     install what the tests need and run all of them"
	@echo "make check    format, lint, types, C warnings as errors"
	@echo "make format   put the code into its format"
	@echo "make docs     make the tables in docs/protocol.md and docs/edge-configuration.md"
	@echo "make run-table  try which programs 'relaycore run' serves, and write the table in docs/run.md"
	@echo "make bench    compare topologies on this machine (minutes); bench-quick for a glance"
	@echo "make gate     fail when a ratio or an exact count is worse than bench/baseline.json (a minute)"

run: $(BIN)/.runtime $(BIN)/.native
	@exec $(BIN)/relaycore serve $(ARGS)

demo: $(BIN)/.runtime $(BIN)/.native
	@$(BIN)/relaycore demo $(ARGS)

test: $(BIN)/.dev $(BIN)/.native
	.ci/ensure test
	+$(MAKE) -j2 -C native programs
	+$(MAKE) -j1 -C native test sanitize tsan
	tests/interop/install.sh
	$(BIN)/python -m pytest $(ARGS)

check: $(BIN)/.dev $(BIN)/.native
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	git ls-files -z 'relaycore/*.py' | xargs -0 -P 2 -n 40 $(BIN)/flake8-async --startable-in-context-manager=serve,_keep_pages,post_events,serve_proxy_port,serve_dns,serve_control,serve_pages,serve_http,serve_asgi,run,_accept,_heed_signals
	git ls-files -z 'tests/*.py' 'bench/*.py' 'examples/*.py' | xargs -0 -P 2 -n 40 $(BIN)/flake8-async --disable=ASYNC110,ASYNC124,ASYNC900,ASYNC910,ASYNC911,ASYNC912,ASYNC913
	$(BIN)/mypy
	RELAYCORE_WERROR=1 $(BIN)/python setup.py -q build_ext --build-lib build/check --build-temp build/check/temp --force

docs: $(BIN)/.dev
	$(BIN)/python docs/protocol_table.py
	$(BIN)/python docs/edge_keys.py

run-table: $(BIN)/.dev $(BIN)/.native
	$(BIN)/python tests/edge/run/matrix.py --write

format: $(BIN)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

native-test:
	$(MAKE) -C native test sanitize tsan

interop: $(BIN)/.dev $(BIN)/.native
	.ci/ensure test
	tests/interop/install.sh
	$(BIN)/python -m pytest tests/interop $(ARGS)

bench: $(BIN)/.dev $(BIN)/.native
	.ci/ensure bench
	$(BIN)/python -m bench $(ARGS)

bench-quick: $(BIN)/.dev $(BIN)/.native
	$(BIN)/python -m bench --quick $(ARGS)

gate: $(BIN)/.dev $(BIN)/.native
	$(BIN)/python -m bench.gate $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info relaycore/_native/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment ------------------------------------------------------------------------------------------------------

$(BIN)/python:
	.ci/ensure build $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip setuptools cffi

$(BIN)/.runtime: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install -q --no-build-isolation -e '.[tls]'
	@touch $@

$(BIN)/.dev: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install -q --no-build-isolation -e '.[tls]' --group dev
	@touch $@ $(BIN)/.runtime

# Neither pip nor uv rebuilds the C part of an editable install by itself after an edit.
$(BIN)/.native: $(NATIVE) | $(BIN)/python
	$(BIN)/python setup.py -q build_ext --inplace --build-temp build/native-module
	@touch $@
