# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test faults slow lint clean

run: $(STAMP)
	$(BIN)/python -m vidmatte demo --output demo

test: $(STAMP) lint
	$(BIN)/python -m pytest

# Bad files, faults while running, hostile input, fuzzing: all of it, with the numbers at the end.
faults: $(STAMP)
	$(BIN)/python tests/faults_report.py

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,evaluate,train,test]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt pysodmetrics
	touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info
