# The two commands are `make reproduce` and `make test`; each sets up .venv by itself.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: reproduce test setup lint docs bench lock clean

reproduce: $(READY)
	$(BIN)/ufm reproduce --out out

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadscope

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
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)
