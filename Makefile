# make demo      see it work: 200 tasks moving money, on the stock engine and on qsession, 20 s
# make test      the test suite in three processes;  PYTEST_ARGS="-n 0 -x -k name" narrows it, in one
# make test-all  the suite on every Python 3.10 to 3.14 found here, with SQLAlchemy 2.0 and 2.1,
#                once without the short ways of short statements, and once on uvloop
# make apps      Prefect, google-adk, DBOS, Crawlee, Optuna, Flask-SQLAlchemy and others on the engine, some minutes
# make storm     kill processes a hundred times, and cut the power ten thousand times, some minutes
# make bench     measure against other libraries, about half an hour;  BENCH_ARGS="--rounds 1 throughput"
# make check     ruff and mypy
# make docs      the site of the documentation, in .make/site;  it also gets what the examples of the pages need
# make pictures  take the pictures of the dashboard's page again, in Chromium
# make dist      the archives of a release in dist/, looked at by twine
# make release   the same, then the tag of the version; CONTRIBUTING.md says what comes before and after
# make clean     remove what make made

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first interpreter that is new enough and can make an environment. PYTHON=... overrides it.
FIND_PYTHON = for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10 \
	$$HOME/.pyenv/versions/3.1[0-9].*/bin/python; do \
	"$$p" -c 'import sys, venv, ensurepip, sqlite3; sys.exit(sys.version_info < (3, 10))' \
	>/dev/null 2>&1 && { echo "$$p"; break; }; done || true
PYTHON ?= $(shell $(FIND_PYTHON))

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST_ARGS ?=
# Much of the suite waits: for a disk, a server, a child process. A file stays in one process.
PYTEST := $(BIN)/python -m pytest
SHARED := -n 3 --dist loadfile
DEMO_ARGS ?=
BENCH_ARGS ?=

.PHONY: help demo test test-all apps storm bench check docs pictures dist release clean

help:
	@sed -n '/^# make/,/^$$/s/^# //p' Makefile

.venv/made:
	@if [[ -z "$(PYTHON)" ]]; then \
		echo "No fitting Python: need 3.10 or newer with venv, ensurepip and sqlite3."; \
		echo "On Debian or Ubuntu: apt install python3-venv. Or name one: make PYTHON=/path/to/python3"; \
		exit 1; fi
	"$(PYTHON)" -m venv --clear .venv
	touch $@

.venv/demo: .venv/made pyproject.toml
	$(PIP) install --editable '.[cli,demo]'
	touch $@

.venv/dev: .venv/made pyproject.toml
	$(PIP) install --editable '.[dev,cli,demo]'
	touch $@

# Libraries that are compared but cannot be installed here are left out.
.venv/bench: .venv/made pyproject.toml
	@$(PIP) install --editable '.[cli,bench,peers]' || { \
		echo "Not all other libraries can be installed; they are tried one by one."; \
		$(PIP) install --editable '.[cli,bench]'; \
		for each in aiosqlitepool peewee 'piccolo[sqlite]' tortoise-orm; do \
			$(PIP) install "$$each" || true; done; }
	touch $@

# A new file each time; what an earlier demo left is removed first.
demo: .venv/demo
	rm -rf .make/demo && mkdir -p .make/demo
	QSESSION_URL=sqlite+qsession:///.make/demo/qsession.db $(BIN)/alembic upgrade head
	$(BIN)/python -m examples.demo .make/demo $(DEMO_ARGS)

# SQLAlchemy's dialect suite brings its own pytest plugin, so it runs in a process of its own.
test: .venv/dev
	$(PYTEST) tests --ignore=tests/compliance --ignore=tests/apps $(SHARED) $(PYTEST_ARGS)
	if [[ -d tests/compliance ]]; then $(PYTEST) tests/compliance && $(PYTEST) tests/compliance --db synchronous; fi

test-all:
	.ci/matrix $(PYTEST_ARGS)

# An environment of its own, since these programs bring much along: a gigabyte.
apps: .make/apps/made
	.make/apps/bin/python -m pytest -c tests/apps/pytest.ini tests/apps $(PYTEST_ARGS)

.make/apps/made: tests/apps/requirements.txt pyproject.toml
	@if [[ -z "$(PYTHON)" ]]; then echo "No fitting Python: need 3.10 or newer."; exit 1; fi
	"$(PYTHON)" -m venv --clear .make/apps
	.make/apps/bin/python -m pip --disable-pip-version-check --quiet install -r tests/apps/requirements.txt --editable .
	touch $@

# CRASH_SEED and POWER_SEED, which the tests print, repeat the choices of a run.
storm: .venv/dev
	CRASH_ROUNDS=100 POWER_CUTS=10000 $(BIN)/python -m pytest -s \
		tests/storm/test_crashes.py tests/sqlite/durability/test_power_loss.py $(PYTEST_ARGS)

# On the disk of this folder. It renews benchmarks/results and the tables of the pages.
bench: .venv/bench
	rm -rf .make/bench && mkdir -p .make/bench
	$(BIN)/python -m benchmarks --directory .make/bench --out benchmarks/results $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.report

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The variable silences an advertisement.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

.venv/docs: .venv/made pyproject.toml
	$(PIP) install --editable '.[docs]'
	touch $@

pictures: .venv/dev
	$(BIN)/python tests/ext/dashboard/pictures.py

dist: .venv/dist
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

.venv/dist: .venv/made
	$(PIP) install build twine
	touch $@

release:
	.ci/release

clean:
	rm -rf .venv .venvs .make .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
