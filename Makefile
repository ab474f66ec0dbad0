# Everything runs in .venv, made on first need. `make test` from a fresh clone is enough.

PYTHON ?= python3
TORCH ?= 2.13.0
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: venv demo test matrix check ci clean

venv: $(STAMP)

# Torch first and only where it is missing: which build suits the machine (CPU, CUDA, ROCm) is the user's choice.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Halftone needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install -q torch==$(TORCH)
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

demo: venv
	bash scripts/demo.sh

# A worker a core, of one thread: small models gain nothing from more. Files stay whole, as their fixtures are shared.
test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

matrix: venv
	bash scripts/matrix.sh

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

ci: check test

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build
