# Two commands on a fresh machine with Python 3.11 or newer, make and git: `make train` and `make test`.
# `make setup` installs RamTrain alone, for a project of your own.

PYTHON ?= python3
BIN := .venv/bin
# Paths in recipes are relative or quoted: the checkout may lie in a folder with spaces.
ACTIVATE := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: setup train report test test-trainers test-slurm lint status bench crash clean
setup: .venv/workflow

train: .venv/example examples/tiny_tts/data/metadata.csv
	$(ACTIVATE) snakemake --cores 1 train

report: .venv/example examples/tiny_tts/data/metadata.csv
	$(ACTIVATE) snakemake --cores 1 all --report report.html --report-after-run

# Most of the time tests wait for trainers: three at a time, and one that has none left takes another's. TESTS names some.
test: .venv/dev examples/tiny_tts/data/metadata.csv
	$(ACTIVATE) python -m pytest --numprocesses 3 --dist worksteal $(TESTS)

# Real libraries on tiny models; not part of `test`, which does without them.
test-trainers: .venv/trainers examples/tiny_tts/data/metadata.csv
	$(ACTIVATE) python -m pytest --numprocesses 3 --dist worksteal tests/trainers

# Starts a SLURM of one node, as root, from the packages slurm-wlm and munge; says so where it cannot.
test-slurm: .venv/slurm
	$(ACTIVATE) python -m pytest tests/slurm

lint: .venv/dev
	$(ACTIVATE) ruff check .
	$(ACTIVATE) ruff format --check .
	$(ACTIVATE) snakefmt --check Snakefile workflow
	$(ACTIVATE) snakemake --lint

status: .venv/workflow
	$(ACTIVATE) python -m ramtrain status

bench: .venv/dev examples/tiny_tts/data/metadata.csv
	$(ACTIVATE) python tests/bench

crash: .venv/dev examples/tiny_tts/data/metadata.csv
	$(ACTIVATE) python tests/crash/kills.py

clean:
	rm -rf .venv

# One environment for the workflow, the example and the tests; a stamp for each part that is complete.
.venv/workflow: requirements.txt constraints.txt pyproject.toml
	"$(PYTHON)" -c 'import sys; sys.exit("RamTrain needs Python 3.11 or newer; make PYTHON=python3.12 names one") if sys.version_info < (3, 11) else None'
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt -e .
	touch $@

.venv/example: .venv/workflow examples/tiny_tts/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r examples/tiny_tts/requirements.txt
	touch $@

.venv/dev: .venv/example requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	touch $@

.venv/trainers: .venv/dev requirements-trainers.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-trainers.txt
	touch $@

.venv/slurm: .venv/dev requirements-slurm.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-slurm.txt
	touch $@

examples/tiny_tts/data/metadata.csv: .venv/example
	$(ACTIVATE) python examples/tiny_tts/make_dataset.py
	touch $@
