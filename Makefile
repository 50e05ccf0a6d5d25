# `make demo` and `make test` work on a fresh machine with Python 3.11 or newer, make and pip.
PYTHON ?= python3
TORCH  := torch==2.13.0
# timm wants a torchvision, which does not load on a CPU build of torch (tests/timm_package.py): kept apart.
TIMM   := timm==1.0.31 torchvision==0.28.0
BIN    := .venv/bin
ON_TWO := -n 2 --dist loadfile

.PHONY: demo test test-all report setup lint pytest fuzz gpu clean
.DELETE_ON_ERROR:

demo: .venv/.lab  ## train a small Llama on Shakespeare with AMUSE.anytime, about 90 seconds
	$(BIN)/amuse-lab train shakespeare --optimizer anytime

test: export OMP_NUM_THREADS = 1
test: lint pytest  ## everything the gate checks

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

pytest: .venv/.dev
	$(BIN)/pytest -q --doctest-modules src/amuse_optim
	$(BIN)/pytest -q $(ON_TWO) -m "not slow"

test-all: export OMP_NUM_THREADS = 1
test-all: lint  ## the gate, and what is too slow for it
	$(BIN)/pytest -q --doctest-modules src/amuse_optim
	$(BIN)/pytest -q $(ON_TWO)

report: .venv/.lab  ## pages, figures and documents of all studies with records, the same bytes from the same records
	$(BIN)/amuse-lab report --project .

fuzz: export OMP_NUM_THREADS = 1
fuzz: .venv/.dev  ## 2,000 random lives of the optimizer against its specification, a minute or two
	$(BIN)/pytest -q tests/requirements/test_state_machine.py --hypothesis-profile nightly

# With the torch that the machine has: nothing is installed, and no network is needed.
gpu:  ## everything that wants a GPU, on a machine that has one, about 25 minutes
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu --minutes 25 $(if $(wildcard wheels),--wheels wheels)

setup: .venv/.dev  ## the development environment alone

# torch first and by exact version: a CPU build that the machine holds is then used as it is.
.venv/.torch: Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	touch $@

.venv/.lab: .venv/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[lab]'
	touch $@

.venv/.dev: .venv/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/timm $(TIMM)
	touch $@ .venv/.lab

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
