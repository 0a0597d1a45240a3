# Two commands: `make demo` and `make test`. Both make their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin
WHEEL := $(VENV)/wheel
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

# The wheel is built once and installed with the extras that a target needs.
$(VENV)/.demo $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: $(VENV)/.wheel
	for wheel in $(WHEEL)/splip-*.whl; do "$(BIN)/python" -m pip install --quiet "$$wheel[$*]" || exit 1; done
	touch "$@"

$(VENV)/.wheel: $(SOURCES) setup.py pyproject.toml CMakeLists.txt | $(VENV)/bin/python
	rm -rf "$(WHEEL)"
	"$(BIN)/python" -m pip wheel --quiet --no-deps --wheel-dir "$(WHEEL)" .
	"$(BIN)/python" -m pip uninstall --quiet --yes splip 2>/dev/null
	touch "$@"

$(VENV)/bin/python:
	"$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --upgrade pip
