# POSIX make and sh. Every tool runs as .venv/bin/...: nothing depends on an activated environment.
.POSIX:

PYTHON ?= python3
# A Python 3.12 for smoke312; empty: python3.12 from PATH, where there is one.
PYTHON312 ?=
# Extra arguments for pytest and the benchmarks: make test ARGS="-k reader -x".
ARGS ?=
# Least coverage of mlprod/ in percent. A part of the suite cannot reach it: make test ARGS="-k reader" COVERAGE_MIN=0.
COVERAGE_MIN ?= 90

BIN = .venv/bin
CONFIG = configs/flights.py

# Shared by .venv and .venv312, called as `$(INSTALL) DIR INTERPRETER`. A folder without a working pip is the rest of an interrupted
# run and is made anew; a whole one is kept, so that a changed pin reinstalls one package and not all.
INSTALL = install_env() { \
	  "$$1/bin/python" -m pip --version >/dev/null 2>&1 || "$$2" -m venv --clear "$$1" || return 1; \
	  echo "installing the pinned packages into $$1 (a minute or more) ..."; \
	  "$$1/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,test]" || return 1; \
	  touch "$$1/.stamp"; \
	}; install_env

.PHONY: help env demo test servers test-servers chaos soak lint bench smoke312 clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-14s %s\n' "$$name" "$$text"; done

env: .venv/.stamp ## make .venv with the pinned packages (PYTHON=python3.12 chooses the interpreter)

# The stamp is written last: after a failure the next call tries again.
.venv/.stamp: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=$$("$(PYTHON)" -c 'import platform; print("Python " + platform.python_version())' 2>/dev/null) || found="not a working Python"; \
	  echo "mlprod needs Python 3.11 or newer, but '$(PYTHON)' is $$found; give another: make env PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	@$(INSTALL) .venv "$(PYTHON)"

demo: env ## flights from rows to predictions on this machine: ETL, training, evaluation, report, scoring
	$(BIN)/python -m mlprod.etl.demo
	$(BIN)/python -m mlprod.etl --config $(CONFIG)
	$(BIN)/python -m mlprod.train --config $(CONFIG)
	$(BIN)/mlprod evaluate --config $(CONFIG) --split test
	$(BIN)/mlprod report --config $(CONFIG)
	$(BIN)/mlprod predict --config $(CONFIG) --output runs/flights/predictions.parquet --limit 1000

test: env ## the suite with coverage; fails below COVERAGE_MIN (ARGS="..." goes to pytest)
	$(BIN)/python -m pytest -m "not chaos and not servers" --cov --cov-report=term --cov-fail-under=$(COVERAGE_MIN) $(ARGS)

# Where it is there already nothing is done; a machine without apt-get or root is told, and its server tests skip.
servers: ## install what test-servers needs (MariaDB) by apt-get; needs root
	@if PATH="$$PATH:/usr/sbin" command -v mariadbd >/dev/null; then echo "servers: MariaDB is there already"; \
	elif ! command -v apt-get >/dev/null || [ "$$(id -u)" -ne 0 ]; then \
	  echo "servers: MariaDB is not here, and installing it needs apt-get and root" >&2; exit 1; \
	else apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mariadb-server; fi

test-servers: env ## the tests that need servers installed on the system
	$(BIN)/python -m pytest -m servers $(ARGS) || { [ $$? -eq 5 ] && echo "no server tests yet"; } # 5: nothing was collected

chaos: env ## the long harness that kills and resumes runs
	$(BIN)/python -m pytest -m chaos -rP $(ARGS)

soak: env ## a run that is disturbed and watched for 30 minutes; curves in runs/soak/soak.html (ARGS="--minutes 5 --output FILE")
	$(BIN)/python -m tests.chaos.soak $(ARGS)

lint: env ## format, lint and type checks over every file git knows
	$(BIN)/pre-commit run --all-files

bench: env ## every benchmark in turn (ARGS="--quick" for the small form)
	@status=0; \
	for script in benchmarks/[!_]*.py; do \
	  [ -f "$$script" ] || continue; \
	  echo "== $$script"; \
	  $(BIN)/python "$$script" $(ARGS) || { echo "failed: $$script" >&2; status=1; }; \
	done; \
	exit $$status

# `command -v` is not enough: a version manager's shim can be on PATH with no 3.12 behind it.
smoke312: ## the smoke tests on Python 3.12 in .venv312; skipped where there is none
	@python="$(PYTHON312)"; [ -n "$$python" ] || python=python3.12; \
	if "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1; then \
	  $(MAKE) .venv312/.stamp PYTHON312="$$python" && .venv312/bin/python -m pytest -m smoke $(ARGS); \
	elif [ -n "$(PYTHON312)" ]; then \
	  echo "PYTHON312='$(PYTHON312)' is not a Python 3.12" >&2; exit 1; \
	else \
	  echo "smoke312: skipped, no python3.12 found (make smoke312 PYTHON312=/path/to/python3.12)"; \
	fi

.venv312/.stamp: pyproject.toml constraints.txt
	@$(INSTALL) .venv312 "$(PYTHON312)"

clean: ## remove caches and build artefacts; environments, data and runs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov coverage.xml .coverage .coverage.*
	find . -path './.venv*' -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean ## clean, and remove the environments too
	rm -rf .venv .venv312
