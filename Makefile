# Two commands: `make demo` and `make test`. Both make their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
# Tests at a time.
JOBS ?= 2
BIN := $(VENV)/bin
WHEEL := $(VENV)/wheel
# A thread that spins while it waits would take a core from the others.
export OMP_WAIT_POLICY := passive

.PHONY: demo test lint docs results clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	"$(BIN)/splip" demo --out "$(DEMO)" $(DEMO_ARGS)

test: $(VENV)/.test
	"$(BIN)/python" -m pytest -q -n $(JOBS) --dist loadfile

lint: $(VENV)/.dev
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy" python/splip export
	"$(BIN)/clang-format" --dry-run --Werror csrc/*.h csrc/*.cpp csrc/cpu/* csrc/cuda/*

# What docs/ and the code say, as pages in site/; nothing in them asks another host for anything.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 "$(BIN)/python" -m mkdocs build --quiet --strict
	@echo "site/index.html; with its search: $(BIN)/python -m http.server -d site"

# Everything that docs/results.md says, from the pictures on: hours on two cores. What is finished is used again.
WORK ?= build/results
pretrain = "$(BIN)/splip" pretrain --pictures "$(WORK)/pictures" --sample "$(WORK)/sample" --compile --eval-every 250 \
	--out "$(WORK)/$(1)" $(2) $$(test -f "$(WORK)/$(1)/last.pt" && echo --resume)

results: $(VENV)/.results
	"$(BIN)/splip" data sample --out "$(WORK)/sample"
	test -f "$(WORK)/pictures/pictures.csv" || "$(BIN)/python" tools/build_pictures.py --out "$(WORK)/pictures"
	test -f "$(WORK)/no-outlines/weights.safetensors" || $(call pretrain,no-outlines,--outlines 0 --steps 2000)
	test -f "$(WORK)/tiny/weights.safetensors" || $(call pretrain,tiny,--steps 500)
	test -f "$(WORK)/small/weights.safetensors" || $(call pretrain,small,--steps 500 --backbone splip-small)
	"$(BIN)/python" benchmarks/sample_results.py --sample "$(WORK)/sample" --out "$(WORK)/runs" \
	  --no-outlines "$(WORK)/no-outlines/weights.safetensors" \
	  --scaling "splip-tiny=$(WORK)/tiny/weights.safetensors" "splip-small=$(WORK)/small/weights.safetensors"
	"$(BIN)/python" benchmarks/results_page.py --runs "$(WORK)/runs"

clean:
	rm -rf "$(VENV)" build site

SOURCES := $(shell find csrc export python/splip -type f -not -name '*.so' -not -path '*/__pycache__/*' 2>/dev/null)

# The wheel is built once and installed with the extras that a target needs.
$(VENV)/.demo $(VENV)/.test $(VENV)/.dev $(VENV)/.docs $(VENV)/.results: $(VENV)/.%: $(VENV)/.wheel
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
