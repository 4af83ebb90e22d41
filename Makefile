# make demo   a virtual environment, then a real data set from training to report (about 4 minutes on 2 cores)
# make test   the same environment, then the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REAL_DATA ?=
TEST_OPTIONS := $(if $(REAL_DATA),--real-data=$(REAL_DATA))

.PHONY: setup demo test test-slow lint format clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "medseg needs Python 3.11 or newer; try: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/medseg run configs/quickstart.yaml

test: setup
	$(BIN)/python -m pytest tests $(TEST_OPTIONS)

test-slow: setup
	$(BIN)/python -m pytest tests --slow $(TEST_OPTIONS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
