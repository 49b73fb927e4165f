# make train: environment, embedded data, a real training run.   make test: environment, the whole test suite.
# make train RECIPE= trains plain GPT-2.   make speedrun: how fast the record recipe reaches nanoGPT's loss
# (docs/speedrun.md), with SEEDS=1,2,3,4,5 and RUNGS=… for more, SPEEDRUN=DIR to go on with one that was interrupted.
# PYTHON=… chooses the interpreter, ARGS=… adds to the command, WORKERS=… is how many tests run at a time.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
WORKERS ?= 3
RECIPE ?= experiment=quickstart
SEEDS ?= 1
RUNGS ?= nanogpt,small
NOW := $(shell date +%Y-%m-%d/%H-%M-%S)
SPEEDRUN ?= outputs/speedrun/$(NOW)
# Hundreds of processes import the same code: they keep it compiled, even where the environment says not to.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS)
# $(call timed,NAME,COMMAND): say how long it took.
timed = @begun=$$(date +%s); echo '$(2)'; $(2); code=$$?; echo "$(1): $$(($$(date +%s) - begun)) s"; exit $$code

.PHONY: train speedrun test unit coverage lint docs clean

train: .venv/train
	$(BIN)/python train.py $(RECIPE) $(ARGS)

speedrun: .venv/train
	$(BIN)/python train.py sweeps=speedrun sweep.arm=$(RUNGS) seed=$(SEEDS) hydra.sweep.dir=$(SPEEDRUN) $(ARGS)
	$(BIN)/python -m gpt.speedrun $(SPEEDRUN)

test: .venv/dev lint
	$(call timed,tests,$(PYTEST) $(ARGS))

unit: WORKERS = 2
unit: .venv/dev
	$(call timed,unit tests,$(PYTEST) -m "not slow" $(ARGS))

coverage: .venv/dev
	$(call timed,tests with coverage,COVERAGE_FILE=$(CURDIR)/.coverage $(PYTEST) --cov --cov-config=tests/coverage.ini --cov-report=term-missing $(ARGS))

lint: .venv/dev
	$(call timed,lint,$(BIN)/ruff check . && $(BIN)/ruff format --check .)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "gptlab needs Python 3.11 to 3.13 (Hydra 1.3 fails on 3.14); none was found: make PYTHON=path/to/python" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "gptlab needs Python 3.11 to 3.13 (Hydra 1.3 fails on 3.14), and $(PYTHON) is another" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/train: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/dev: requirements.txt requirements-dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@ .venv/train

docs: .venv/dev
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv data/cache outputs .coverage*
