# Everything runs in .venv, which is made on first use. PYTHON names the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test check style clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[tests,quality]'
	touch $@

demo: $(VENV)/.installed  ## prune the embedded sample with Wanda and with M-Wanda, and compare them per language
	$(RUN) examples/01_prune_sample.py --output pruned_sample

test: $(VENV)/.installed  ## run the tests
	$(RUN) -m pytest --numprocesses auto

check: $(VENV)/.installed  ## lint, format check, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

style: $(VENV)/.installed  ## fix what ruff can fix
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) pruned_sample .pytest_cache .mypy_cache .ruff_cache .hypothesis
