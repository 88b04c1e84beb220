# What this checkout can do: `make help`.
.DEFAULT_GOAL := help
SHELL := /bin/sh
SETUP := tests/services/setup
BIN := .venv/bin

.PHONY: help run install-venv test unit lint format bench docs pictures clean

help:  ## list what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run:  ## run the whole pipeline here, on a broker and a cache of its own (ARGS='--for 30')
	@$(SETUP)/install demo
	@exec $(BIN)/zonerd demo $(ARGS)

install-venv:  ## install zonerd into .venv, for .venv/bin/zonerd
	@$(SETUP)/install demo

test:  ## set up all that tests need, and run every test against real services (ARGS='-k fence')
	@$(SETUP)/install demo,dev
	@$(SETUP)/kafka
	@$(SETUP)/packages systemd
	@$(SETUP)/prometheus
	@$(SETUP)/redis
	@$(BIN)/python -m pytest --numprocesses=3 --dist=worksteal $(ARGS)

unit:  ## run the tests that need no service (under 20 s)
	@$(SETUP)/install demo,dev
	@$(BIN)/python -m pytest --numprocesses=2 --dist=worksteal tests/unit $(ARGS)

lint:  ## check style, types, layers and spelling
	@$(SETUP)/install demo,dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format:  ## write the code the way lint wants it
	@$(SETUP)/install demo,dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench:  ## measure the consumer's whole work on a real Kafka
	@$(SETUP)/install demo,dev
	@$(SETUP)/kafka
	@PYTHONPATH=tests $(BIN)/python -m benchmarks $(ARGS)

docs:  ## write docs/reference anew, from the code
	@$(SETUP)/install demo,dev
	@$(BIN)/python docs/generate.py

pictures:  ## take the pictures of docs/operations.md anew, from a running zonerd
	@$(SETUP)/install demo,dev
	@$(SETUP)/kafka
	@PYTHONPATH=tests $(BIN)/python docs/pictures.py

clean:  ## remove what make made here, but the demo's data in var/
	rm -rf .venv .cache build dist *.egg-info .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find zonerd tests benchmarks -name __pycache__ -type d -exec rm -rf {} +
