# make demo    ingest the sample corpus and search it
# make test    format check, lint, types, layers, all tests, but of each grid of faults a third
# make bench   measure speed, memory and cost; write docs/performance.md (half an hour)
# make bench-peers  against what people use instead; installs them beside (longer)
# make crash-test  every way to die: killed at every step and at random, bad disks, input, networks (an hour)
PYTHON ?= python3
BIN := .venv/bin
DEMO := .demo
RUNS ?= 200
RECORDS ?= 20000
LONG ?= 1000000 100000

.PHONY: demo test bench bench-peers crash-test lint format clean

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ragingest needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group test
	@touch $@

.venv/benched: .venv/tested
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	@touch $@

.venv-peers/installed: pyproject.toml .venv-peers/cocoindex/installed
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --group bench-peers
	@touch $@

.venv-peers/cocoindex/installed: pyproject.toml
	test -x .venv-peers/cocoindex/bin/python || $(PYTHON) -m venv .venv-peers/cocoindex
	.venv-peers/cocoindex/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	.venv-peers/cocoindex/bin/python -m pip install --quiet --disable-pip-version-check --group bench-cocoindex
	@touch $@

demo: .venv/installed
	@rm -rf $(DEMO) && mkdir $(DEMO)
	$(BIN)/ragingest run sample_data/library_handbook.jsonl --job demo --checkpoint-dir $(DEMO)/checkpoints --store-path $(DEMO)/data
	$(BIN)/ragingest stats --checkpoint-dir $(DEMO)/checkpoints
	$(BIN)/ragingest search "how do I mend a torn page" --limit 3 --store-path $(DEMO)/data

# Compiled first, because tests start the command many times, also where the environment forbids to write .pyc files.
test: lint
	$(BIN)/python -m compileall -q ragingest tests
	$(BIN)/python -m pytest -n 3 --dist worksteal

bench: .venv/benched
	$(BIN)/python -m compileall -q ragingest tests benchmarks
	$(BIN)/python -m benchmarks

bench-peers: .venv/benched .venv-peers/installed
	$(BIN)/python -m compileall -q ragingest tests benchmarks
	$(BIN)/python -m benchmarks.peer_contest .venv-peers/bin/python
	$(BIN)/python docs/generate.py

crash-test: .venv/tested
	$(BIN)/python -m pytest -n 3 --dist worksteal --every-fault tests/faults tests/api tests/e2e/test_copy.py tests/e2e/test_incremental.py tests/e2e/test_verify.py
	$(BIN)/python -m benchmarks.random_death $(RUNS) $(RECORDS) qdrant-edge pgvector
	$(BIN)/python -m benchmarks.long $(LONG)

lint: .venv/tested
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/tested
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-peers $(DEMO) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
