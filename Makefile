# Two commands: `make demo` and `make test`. Both make their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin
# A thread that spins while it waits would take a core from the others.
export OMP_WAIT_POLICY := passive

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	"$(BIN)/splip" demo --out "$(DEMO)" $(DEMO_ARGS)

test: $(VENV)/.test
	"$(BIN)/python" -m pytest -q

lint: $(VENV)/.dev
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy" python/splip export
	"$(BIN)/clang-format" --dry-run --Werror csrc/*.h csrc/*.cpp csrc/cpu/* csrc/cuda/*

clean:
	rm -rf "$(VENV)" build

SOURCES := $(shell find csrc export python/splip -type f -not -name '*.so' -not -path '*/__pycache__/*' 2>/dev/null)

# An installed tree is made again when a source changed.
$(VENV)/.%: $(SOURCES) setup.py pyproject.toml CMakeLists.txt | $(VENV)/bin/python
	"$(BIN)/python" -m pip install --quiet ".[$*]"
	touch "$@"

$(VENV)/bin/python:
	"$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --upgrade pip
