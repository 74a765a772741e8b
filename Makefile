# One command sets up (`make install`), one checks (`make check`), one tests (`make test`); CI runs the same.
VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
WORKERS ?= 2
# Two workers on two cores: one thread each.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help install demo test check format bench wheel clean
.DEFAULT_GOAL := help

help:
	@echo 'make install   a virtual environment in $(VENV), with everything pinned by constraints.txt'
	@echo 'make demo      compile sort, prove it on every input, check the proof, refute two false claims'
	@echo 'make test      all tests'
	@echo 'make check     format, lint, types'
	@echo 'make bench     the figures of benchmarks/, printed'
	@echo 'make wheel     dist/certiformer-*.whl'
	@echo 'make format    format and sort imports in place'

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'certiformer needs Python 3.11 or later; none found: make install PYTHON=/path/to/python3' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/certiformer demo

test: $(STAMP)
	$(TEST_ENV) $(BIN)/pytest -n $(WORKERS) --dist worksteal -q

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run

wheel: $(STAMP)
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
