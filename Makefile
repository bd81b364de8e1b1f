# Two commands set everything up: `make demo` and `make test`. Both install into .venv first, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint bench clean

install: $(STAMP)

# One pip call: the stand-in in .ci/fbgemm-gpu keeps the CUDA build of fbgemm out (see README, "Install").
$(STAMP): pyproject.toml .ci/fbgemm-gpu/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet ./.ci/fbgemm-gpu -e ".[dev]"
	$(BIN)/python -m pip check
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m pipelines demo --out data/demo

test: $(STAMP)
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m pipelines benchmark all --out data/benchmark

clean:
	rm -rf $(VENV) data/demo data/benchmark
