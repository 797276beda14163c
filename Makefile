# make setup | demo | test | check | bench-scenes | bench-sit | ...; everything runs in .venv, made from requirements.lock
# (and, for tests, requirements-extras.lock: the optional packages).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: setup extras demo test test-slow check format wheel bench-scenes bench-sit bench-engine bench-reflect bench-search clean

setup: $(VENV)/.done

$(VENV)/.done: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "secondlook needs Python 3.11 or newer; try make setup PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

extras: $(VENV)/.extras

$(VENV)/.extras: $(VENV)/.done requirements-extras.lock
	$(BIN)/pip install -q --disable-pip-version-check -r requirements-extras.lock
	@touch $@

demo: setup
	$(BIN)/python -m secondlook.cli.demo

test: setup extras
	$(BIN)/python -m pytest -n $(WORKERS)

test-slow: setup extras
	$(BIN)/python -m pytest -m slow

check: setup extras
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy secondlook
	$(BIN)/python tests/house_rules.py
	$(BIN)/python -m pytest -n $(WORKERS)

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: setup
	rm -rf dist && $(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist .

bench-scenes: setup
	$(BIN)/python -m secondlook.bench.scenes --out runs/bench-scenes --readme README.md

bench-engine: setup
	$(BIN)/python benchmarks/engine_overhead.py

clean:
	rm -rf $(VENV) build dist *.egg-info

bench-sit: setup
	$(BIN)/python -m secondlook.bench.sit --out runs/bench-sit --docs docs

bench-search: setup
	$(BIN)/python -m secondlook.bench.search --out runs/bench-search --docs docs

bench-reflect: setup
	$(BIN)/secondlook bench "random(n=20) --model scenes" "random(n=20) --model scenes-tuned" \
	    "reflect(n=20, answer='redraw') --model scenes-tuned --critic learned" "reflect(n=20) --model scenes-edit --critic learned" \
	    "reflect(n=20, answer='earned') --model scenes-edit --critic learned" "reflect(n=20, answer='redraw') --model scenes-edit --critic learned" \
	    "reflect(n=20) --model scenes-edit --critic oracle" "reflect(n=20, answer='redraw') --model scenes-tuned --critic oracle" \
	    --steps 5 --prompts scenes-expert-test --every 2 --budgets 10,20,40,80,200 --seeds 3 --workers 2 --out runs/bench-reflect
