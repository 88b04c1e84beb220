# What this checkout can do: `make help`.
.DEFAULT_GOAL := help
SHELL := /bin/sh
SETUP := tests/services/setup
BIN := .venv/bin
PACKAGE := .

.PHONY: help run install-venv test unit acceptance lint format bench docs pictures dist install uninstall clean

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
	@$(BIN)/python -m pytest --numprocesses=3 --dist=worksteal --ignore=tests/deployment $(ARGS)

unit:  ## run the tests that need no service (under 20 s)
	@$(SETUP)/install demo,dev
	@$(BIN)/python -m pytest --numprocesses=2 --dist=worksteal tests/unit $(ARGS)

acceptance:  ## deploy it for real, as root: containers on a Docker engine, units under a systemd (ARGS='-k compose')
	@$(SETUP)/install demo,dev
	@$(SETUP)/packages docker.io iptables mmdebstrap systemd systemd-container
	@$(SETUP)/kafka
	@$(SETUP)/kafka 3.9.1
	@$(SETUP)/compose
	@$(SETUP)/images
	@$(SETUP)/wheels
	@$(BIN)/python -m pytest tests/deployment $(ARGS)

lint:  ## check style, types, layers and spelling
	@$(SETUP)/install demo,dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/shellcheck --severity=warning .ci/run systemd/install systemd/uninstall tests/services/setup/* tests/services/images/*/run

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

dist:  ## build the wheel and the source package into dist/
	@$(SETUP)/install demo,dev
	@rm -rf build dist
	@$(BIN)/python -m build --no-isolation --outdir dist . >dist.log 2>&1 || { cat dist.log; exit 70; }
	@rm dist.log && ls dist

install:  ## install on this host, as root: /opt/zonerd, /etc/zonerd, zonerd.service (PACKAGE=dist/….whl DESTDIR= PREFIX=)
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' systemd/install '$(PACKAGE)'

uninstall:  ## undo it; configuration, history and logs stay
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' systemd/uninstall

clean:  ## remove what make made here, but the demo's data in var/
	rm -rf .venv .cache build dist *.egg-info .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find zonerd tests benchmarks -name __pycache__ -type d -exec rm -rf {} +
