# The two commands are `make reproduce` and `make test`; each sets up .venv by itself.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY := $(VENV)/.ready
# uv installs in a fifth of pip's time; where only pip knows how to reach an index, pip does it all.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV = $(BIN)/uv pip install --quiet --python $(BIN)/python

.PHONY: reproduce test test-fast test-core test-oldest setup lint docs bench lock clean

reproduce: $(READY)
	$(BIN)/ufm reproduce --out out

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadscope

# Between two edits: the core of ufm and theory, and one language model.
FAST := tests/test_imports.py tests/sim/bridge/test_split.py \
  $(addprefix tests/ufm/test_,concepts.py corpus.py directions.py measures.py model.py steerable.py) \
  $(addprefix tests/theory/test_,jaxprs.py predicted.py routes.py)

# Of language models, GPT-2 alone.
ONE_MODEL := -k 'not (llama or qwen3 or gemma3)'

test-fast: $(READY)
	$(BIN)/python -m pytest -n auto -q $(ONE_MODEL) $(FAST)

# On another interpreter (PYTHON and VENV name it): a statement by every route, the core, a sweep of a language model. Whether
# checks notice errors that are planted in the theory does not depend on the interpreter.
test-core: $(READY)
	$(BIN)/ufm verify N5
	$(BIN)/python -m pytest -n auto --dist loadscope -q --ignore-glob '*/test_planted_*' tests/ufm tests/theory $(SWEEP)

SWEEP := tests/sim/bridge/test_split.py::test_one_program_serves_all_layers_strengths_vectors_and_contexts

# With the oldest versions that pyproject.toml allows, in an environment of its own.
test-oldest: VENV := $(if $(filter .venv,$(VENV)),.venv-oldest,$(VENV))
test-oldest:
	$(PYTHON) -m venv $(VENV)
	$(PIP) 'uv>=0.8'
	$(UV) --resolution lowest-direct --editable '.[test]'
	$(VENV)/bin/ufm verify N5
	$(VENV)/bin/python -m pytest -n auto -q -W ignore::DeprecationWarning $(ONE_MODEL) $(FAST)

setup: $(READY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

bench: $(READY)
	$(BIN)/ufm bench --json out/bench.json

# After a change to the dependencies in pyproject.toml.
lock: $(READY)
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --generate-hashes --no-header --no-annotate \
	  --upgrade --quiet --output-file requirements.lock

clean:
	rm -rf .venv out docs/_build

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.lock
	$(PIP) --require-hashes -r $(VENV)/uv.lock
	$(UV) --require-hashes -r requirements.lock || $(PIP) --require-hashes -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $(READY)
