# Everything runs in .venv, which is made on first use. PYTHON names the interpreter that makes it.
# .venv-oldest has the oldest versions that pyproject.toml allows; only test-oldest uses it.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
OLDEST := .venv-oldest
INSTALL := -m pip install --quiet --disable-pip-version-check

# What a change to one module needs: no model families, no slow reference, no other process, no browser.
FAST := $(addprefix tests/,calibration data modeling pruning record storage test_configuration.py test_golden.py)
SLOW := tests/pruning/test_against_reference.py tests/storage/test_families.py
# Each process begins with a run of neighbours, so that hardly a fixture of a module is made in two of them.
SPREAD := --numprocesses auto --dist worksteal
BENCH := --shapes 256 mixture-256 --layers 1 --languages 4 --quick --widths 256 --starts --threads 1 --clock cpu

.PHONY: demo test test-fast test-oldest test-matrix bench-check check style clean

$(VENV)/.runtime: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) $(INSTALL) --constraint constraints.txt --editable '.[plots]'
	touch $@

$(VENV)/.installed: $(VENV)/.runtime
	$(RUN) $(INSTALL) --constraint constraints.txt --editable '.[tests,quality,training]'
	touch $@

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(INSTALL) --constraint constraints-oldest.txt --editable '.[tests]'
	touch $@

demo: $(VENV)/.runtime  ## prune the embedded sample with Wanda and with M-Wanda, and compare them per language
	$(RUN) examples/01_prune_sample.py --output pruned_sample

test: $(VENV)/.installed  ## run the tests
	$(RUN) -m pytest $(SPREAD)

test-fast: $(VENV)/.installed  ## run the unit tests, in less than a minute
	$(RUN) -m pytest $(SPREAD) --quiet -k "not process" $(FAST) $(addprefix --ignore=,$(SLOW))

test-oldest: $(OLDEST)/.installed  ## run the same tests on the oldest versions that are allowed
	$(OLDEST)/bin/python -m pytest $(SPREAD)

test-matrix: test test-oldest  ## both; with --keep-going also the second where the first fails

bench-check: $(VENV)/.installed  ## compare what steps cost, as ratios, with benchmarks/speed_baseline.json; a minute or two
	$(RUN) benchmarks/speed.py $(BENCH) --check benchmarks/speed_baseline.json

check: $(VENV)/.installed  ## lint, format check, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

style: $(VENV)/.installed  ## fix what ruff can fix
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(OLDEST) pruned_sample .pytest_cache .mypy_cache .ruff_cache .hypothesis
