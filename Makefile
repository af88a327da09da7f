# make demo and make test are the whole set-up: each builds the virtual environment when it is missing.
#   PYTHON  the interpreter the environment is built from (3.10 or newer)
#   VENV    where the environment lives
#   JOBS    processes the tests run in
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint docs bench gpu clean typing

help:
	@echo "make demo      compare three strategies on real digits; tables and figures in results/demo"
	@echo "make test      the tests, doctests, README commands, docs and wheel, in a few minutes"
	@echo "make test-all  the same and the slow cases"
	@echo "make lint      ruff and mypy --strict"
	@echo "make docs      the documentation, in build/site"
	@echo "make bench     the speed benchmarks; rows appended to results/speed/speed.csv"
	@echo "make gpu       all that needs a CUDA device: tests, compute-sanitizer, bandwidth tables, a run of TACLE, then hours of RER"
	@echo "make clean     remove what was built (not .venv, not results)"

# The stamps make an install happen once per change of pyproject.toml.
$(VENV)/.base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "make: PYTHON=$(PYTHON) is not Python 3.10 or newer; name one that is: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install 'pip>=22.3'
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@

demo: $(VENV)/.base
	$(BIN)/clearn compare experiments/demo.yaml

# One thread per process: the tests are small, and two processes share the machine.
test: export OMP_NUM_THREADS := 1
test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n $(JOBS) -m "not slow"

test-all: export OMP_NUM_THREADS := 1
test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n $(JOBS)

lint: $(VENV)/.dev typing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/typing $(BIN)/mypy -p clearn

# The import names as folders: type checkers and the API pages cannot follow the package-dir mapping
# of an editable install, so they read this tree of links.
typing:
	@rm -rf build/typing && mkdir -p build/typing/clearn
	@for path in clearn/*; do ln -s "../../../$$path" build/typing/clearn/; done
	@ln -s ../../../strategies ../../../kernels build/typing/clearn/

docs: $(VENV)/.dev typing
	$(BIN)/mkdocs build --strict --site-dir build/site

bench: $(VENV)/.dev
	@set -e; for script in experiments/speed/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

gpu: $(VENV)/.dev
	@$(BIN)/python -c 'import torch; print("CUDA device:", torch.cuda.get_device_name() if torch.cuda.is_available() else "none found")'
	$(BIN)/python -m pytest -q -m gpu -rs
	$(BIN)/python experiments/speed/cuda_masks.py
	$(BIN)/python experiments/speed/cuda_tag.py
	$(BIN)/python experiments/speed/cuda_tacle.py
	$(BIN)/clearn compare experiments/rer/tiny_imagenet_gpu.yaml

clean:
	rm -rf build dist clearn.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find clearn strategies kernels tests experiments -name __pycache__ -type d -prune -exec rm -rf {} +
