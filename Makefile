# On a fresh machine with Python 3.11 and make: `make demo` shows what this is, `make test` checks it.
# Both use $(VENV): the demo installs what the package needs, the tests add what developing it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGE := $(VENV)/.package
DEV := $(VENV)/.dev
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DOCS_BIN := $(VENV)-docs/bin
DOCS_STAMP := $(VENV)-docs/.installed
COUNTS ?= runs/reliability.json

.PHONY: demo test test-slow lint docs benchmark clean

demo: $(PACKAGE)  ## two models and a search on embedded digits, a fine-tuning on embedded text; one report of all
	$(BIN)/forgetless two-model --seeds 3 --wpl.strength 10 1e3 --iterations 500 --iterations-a 1200 --workers 2 --output runs/demo --overwrite
	$(BIN)/forgetless search --space nas201 --protection none wpl --seeds 3 --epochs 6 --strategy-steps 2 --final-samples 20 --final-batches 150 --workers 2 --output runs/demo-search --overwrite
	$(BIN)/forgetless fine-tune --seeds 3 --layers 2 --width 64 --num-tokens 500 --pretraining 200 --steps 40 --evaluate-every 80 --samples 24 --learning-rate 4e-3 --protection none wise-ft wpl lwf --wise-ft.strength 0.25 0.5 0.75 --workers 3 --output runs/demo-fine-tune --overwrite
	$(BIN)/forgetless report runs/demo runs/demo-search runs/demo-fine-tune

test: $(DEV)  ## every test and docstring example, a process per core, a thread per process
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-slow: $(DEV)  ## kills, damage, full disks, signals, drawn examples, by the thousand; counts go to $(COUNTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 -m hypothesis --hypothesis-profile thorough
	FORGETLESS_RELIABILITY=$(abspath $(COUNTS)) $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal --durations 12 tests/slow

lint: $(DEV)  ## style, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(DOCS_STAMP)  ## the documentation site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS_BIN)/mkdocs build --strict

benchmark: $(DEV)  ## cost of each part, as ratios
	$(BIN)/python benchmarks/fisher.py
	$(BIN)/python benchmarks/proximal_step.py
	$(BIN)/python benchmarks/recurrent_step.py
	$(BIN)/python benchmarks/search_model.py
	$(BIN)/python benchmarks/controller.py

clean:  ## remove the environment and caches; runs stay
	rm -rf $(VENV) $(VENV)-docs site .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(PACKAGE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) --editable .
	touch $@

$(DEV): $(PACKAGE)
	$(INSTALL) --editable '.[dev]'
	# Without what it depends on: torchvision and more, for another build of torch; tests/avalanche_library.py does without.
	$(INSTALL) --no-deps avalanche-lib
	touch $@

# The API reference is read from the sources, so that this environment has no PyTorch.
$(DOCS_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(DOCS_BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		$$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $@
