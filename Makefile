# The two commands of the README. Each creates the environment that it needs, and may be run again.
PYTHON ?= python3
OLDEST_PYTHON ?= python3.10
VENV := .venv
RUN := $(VENV)/bin/python -m
INSTALL := $(RUN) pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Hundreds of sessions and scripts start in tests. Each would compile the package again where images of containers set this.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint types docs generated sample bench race flakes faults generated-networks matrix newest oldest package clean

demo: $(VENV)/.demo ## Run the examples: green models, red ones, and the report
	HF_HUB_OFFLINE=1 $(VENV)/bin/python examples/demo.py

# One thread per worker: two workers with two threads each on two cores wait for each other.
test: $(VENV)/.test ## Run all tests
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RUN) pytest --numprocesses=auto

lint: $(VENV)/.dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

types: $(VENV)/.dev
	$(RUN) mypy

docs: $(VENV)/.dev
	$(RUN) sphinx -W --keep-going -q docs build/docs

generated: $(VENV)/.dev ## Write what follows from declarations and results: typed attributes, the index of pages, cited figures
	$(VENV)/bin/python docs/generate.py
	$(VENV)/bin/python docs/figures.py

sample: $(VENV)/.test $(VENV)/.demo ## Write the report of the examples into the documentation
	HF_HUB_OFFLINE=1 $(VENV)/bin/python docs/sample.py

bench: $(VENV)/.demo ## Print cost ratios, measured side by side in one run
	HF_HUB_OFFLINE=1 $(VENV)/bin/python benchmarks/cost.py
	HF_HUB_OFFLINE=1 $(VENV)/bin/python benchmarks/measures.py
	$(VENV)/bin/python benchmarks/startup.py
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/along_time.py

race: $(VENV)/.test ## Compare the cost of a few rows with the recorded ratios to hand-written loops; fail when one has grown by half
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/race.py --check

flakes: $(VENV)/.test ## Count how often verdicts and baselines are wrong on healthy models
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/flakes.py

faults: $(VENV)/.test ## Score the faults: found, place, cause and cure right, trains worse
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/faults.py
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/reported_faults.py

generated-networks: $(VENV)/.test ## Check what must hold on 20,000 random networks per invariant
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/generated.py --examples 20000 --jobs 2

matrix: ## Run the plugin's tests over environments and options: no xdist, the oldest pytest, other plugins
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PYTHON) tests/matrix.py

newest: .venv-newest/.test ## Run all tests with the newest PyTorch and pytest, in a separate environment
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-newest/bin/python -m pytest --numprocesses=auto

oldest: .venv-oldest/.test ## Run all tests with the oldest supported versions, in a separate environment
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-oldest/bin/python -m pytest --numprocesses=auto

# The wheel is built from the source distribution, so that this one is complete as well.
package: $(VENV)/.dev ## Build the distributions, check them, and run tests of the installed wheel away from the sources
	rm -rf dist
	$(RUN) build --outdir dist .
	$(RUN) twine check --strict dist/*
	$(VENV)/bin/check-wheel-contents dist/*.whl
	$(VENV)/bin/python tests/package.py dist/*.whl

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest build dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Both take a CUDA build of PyTorch, of several GB, which runs on the CPU as well.
.venv-newest/.test: INTERPRETER = $(PYTHON)
.venv-oldest/.test: INTERPRETER = $(OLDEST_PYTHON)
.venv-%/.test: constraints-%.txt pyproject.toml
	$(INTERPRETER) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< --editable ".[test]"
	touch $@

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable ".[examples]"
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable ".[test]"
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable ".[dev]"
	touch $@

.PHONY: cuda
cuda: $(VENV)/.test $(VENV)/.demo ## All checks and timings that need a GPU
	HF_HUB_OFFLINE=1 $(RUN) pytest -m cuda -v
	HF_HUB_OFFLINE=1 $(VENV)/bin/python benchmarks/cost.py --device cuda
	HF_HUB_OFFLINE=1 $(VENV)/bin/python benchmarks/measures.py --device cuda
