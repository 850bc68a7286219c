# Two commands do everything on a fresh machine with Python, make and git: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Derandomised, so that a red run means a change; `make nightly` searches at random.
export HYPOTHESIS_PROFILE ?= ci

.PHONY: demo test quick nightly lint clean

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --tier full

quick: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

nightly: $(READY)
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -n 2 --dist loadfile --tier nightly

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python tests/support/typecheck.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,test,dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) .typing build *.egg-info
