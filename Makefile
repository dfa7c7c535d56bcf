# SPDX-License-Identifier: Apache-2.0
# Every target does the set-up that it needs; a second run of it takes a moment.

VENV ?= .venv
JOBS ?= 2
# Debian releases whose QEMU tests compare with; without them those tests are skipped.
ROOTS ?= trixie multipath
PYTEST = $(VENV)/bin/pytest -n $(JOBS) --dist worksteal

.PHONY: help setup roots demo test lint unit integration reference bench sanitize fuzz soak clean

help:
	@echo 'make demo         export a disk, boot a QEMU guest from it, show what happens'
	@echo 'make test         all checks and tests: lint, unit tests, guests under QEMU'
	@echo 'make lint         ruff and mypy'
	@echo 'make unit         unit tests'
	@echo 'make integration  guests under QEMU'
	@echo 'make reference    the same guests against qemu-storage-daemon, to test the tests'
	@echo 'make bench        benchmarks against qemu-storage-daemon'
	@echo 'make sanitize     tests of the engine under ASan and UBSan'
	@echo 'make fuzz         fuzz the engine, qcow2 images and vhost-user sessions, a minute each'
	@echo 'make roots        only unpack the QEMU 10 that tests and benchmarks compare with'
	@echo 'make soak         all tests that take hours; continues where the last run was stopped'
	@echo 'make setup        only install what the above need'
	@echo 'make clean        remove everything that was built'

setup:
	@VENV=$(VENV) scripts/setup

demo: setup
	@$(VENV)/bin/python -m examples.demo

roots: setup
	@$(VENV)/bin/python -m peers $(ROOTS)

test: lint roots
	$(PYTEST) tests examples integration

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

unit: roots
	$(PYTEST) tests examples

integration: roots
	$(PYTEST) integration

reference: roots
	$(PYTEST) integration --daemon=qemu-storage-daemon

bench: setup
	scripts/exclusive $(VENV)/bin/python -m benchmarks

sanitize: setup
	PYTHON=$(CURDIR)/$(VENV)/bin/python scripts/sanitize

fuzz:
	fuzz/run 60
	PYTHONPATH=. $(VENV)/bin/python -m integration.qcow2.fuzz 60
	PYTHON=$(CURDIR)/$(VENV)/bin/python fuzz/run-python 60

soak: roots
	scripts/exclusive $(VENV)/bin/python -m soak $(ARGS)

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	rm -f vhostblk/engine/_engine*.so vhostblk/engine/_engine.c vhostblk/engine/_engine.o
	rm -f vhostblk/pr/_connection*.so vhostblk/pr/_connection.c vhostblk/pr/_connection.o
