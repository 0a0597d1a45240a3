# Two commands: `make demo` and `make test`. Both make their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
# Tests at a time: as many as there are cores, to eight; each takes up to 2 GB of memory.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
BIN := $(VENV)/bin
WHEEL := $(VENV)/wheel
# A thread that spins while it waits would take a core from the others.
export OMP_WAIT_POLICY := passive
# pip compiles no bytecode (--no-compile); Python keeps that of what it imports, a small part.
unexport PYTHONDONTWRITEBYTECODE
say = @printf '\nsplip: %s\n'

.PHONY: demo test lint docs results clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(say) "the demo: about a minute of training and measuring on two cores"
	"$(BIN)/splip" demo --out "$(DEMO)" $(DEMO_ARGS)

test: $(VENV)/.test
	$(say) "the tests, $(JOBS) at a time: minutes"
	"$(BIN)/python" -m pytest -q -n $(JOBS) --dist worksteal

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
	--out "$(WORK)/$(1)" $(2) $$(ls "$(WORK)/$(1)"/last.* >/dev/null 2>&1 && echo --resume)

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

SOURCES := $(shell find cmake csrc export python/splip -type f -not -name '*.so' -not -path '*/__pycache__/*' 2>/dev/null)

# The wheel is built once and installed with the extras that a target needs.
$(VENV)/.demo $(VENV)/.test $(VENV)/.dev $(VENV)/.docs $(VENV)/.results: $(VENV)/.%: $(VENV)/.wheel
	$(say) "installing splip[$*] into $(VENV): PyTorch is by far the largest part"
	for wheel in $(WHEEL)/splip-*.whl; do \
	  "$(BIN)/python" -m pip install --no-compile "$$wheel[$*]" || exit 1; \
	done
	@touch "$@"

# -v: pip passes on what the build prints, a line for each file that is compiled.
$(VENV)/.wheel: $(SOURCES) setup.py pyproject.toml CMakeLists.txt | $(VENV)/bin/python
	$(say) "building the wheel: compiles the C++ part, under a minute on two cores without CUDA code"
	rm -rf "$(WHEEL)"
	"$(BIN)/python" -m pip wheel -v --no-deps --wheel-dir "$(WHEEL)" .
	"$(BIN)/python" -m pip uninstall --quiet --yes splip 2>/dev/null
	@touch "$@"

$(VENV)/bin/python:
	$(say) "a virtual environment in $(VENV)"
	"$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --no-compile --upgrade pip
