# Two commands do everything on a fresh machine with Python, make and git: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Derandomised, so that a red run means a change; `make nightly` searches at random.
export HYPOTHESIS_PROFILE ?= ci

.PHONY: demo test quick nightly lint arm cuda clean

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY) lint arm cuda
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --tier full

quick: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

nightly: $(READY) arm cuda
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --tier nightly

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python tests/support/typecheck.py

# An emulated Arm machine; where it cannot be had, the tests that need it are skipped and say why.
arm: $(READY)
	@command -v qemu-aarch64 >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y --no-install-recommends qemu-user; } || true
	-@$(BIN)/python -P -m planish.targets.arm.emulator

# nvcc from packages where the machine has none; where that fails, the tests that need it are skipped and say why.
cuda: $(READY)
	-@$(BIN)/python -P -c "from planish.targets.cuda.compiler import find_nvcc; find_nvcc()" 2>/dev/null || \
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[cuda]"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,test,dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) .typing build *.egg-info
