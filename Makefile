# Each command does the set-up it needs, in venv/, on a machine with Python 3.11 or newer.

PYTHON ?= python3
BIN := venv/bin
TOOLS := venv-tools/bin
SHELL_SCRIPTS := setup.sh .ci/run $(wildcard docker/*.sh tests/*/*.sh)
COMPOSE_FILES := $(wildcard docker-compose*.yml tests/docker/*.yml)
LOCK := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"
SECONDS ?= 40
ROUNDS ?= 400
RATE ?= 200

.PHONY: help demo run test test-debian test-tools test-engines test-root lint format lock sbom bench chaos soak clean

help: ## What there is
	@grep -E '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 12

demo: venv/local.done ## All three collectors on a simulated exchange, for SECONDS=40, then the report
	$(BIN)/python -m local --simulate --seconds $(SECONDS)

run: venv/local.done ## The same on the real MEXC, until Ctrl-C
	$(BIN)/python -m local

test: venv/dev.done ## All tests that need nothing but Python
	$(BIN)/pytest -m "not vpn and not docker and not browser and not prometheus and not libreoffice and not stunnel and not zookeeper and not tools and not engines" -n 4 --dist loadfile $(PYTEST)

test-debian: venv/dev.done ## The report's page in Chromium, metrics in Prometheus, CSV in LibreOffice, TLS by stunnel, replicas in ZooKeeper; all have to be installed
	$(BIN)/pytest -m "browser or prometheus or libreoffice or stunnel or zookeeper" $(PYTEST)

test-tools: venv/dev.done venv-tools/done ## Exports in hftbacktest, nautilus_trader, freqtrade and others, replays in ccxt, in an environment of their own; needs Java
	$(BIN)/pytest -m tools $(PYTEST)

test-engines: venv/dev.done venv-engines/1.4.1/done venv-engines/2.0.4/done ## The tables on ClickHouse 23.10 and 24.5, embedded, of 600 MB each
	$(BIN)/pytest -m engines $(PYTEST)

test-root: venv/dev.done ## The tests that need root: VPN in network namespaces, Docker with a daemon of its own
	$(BIN)/pytest -m vpn -n 4 $(PYTEST)
	$(BIN)/pytest -m docker $(PYTEST)

lint: venv/dev.done ## Style, types, shell scripts, compose files, known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/shellcheck $(SHELL_SCRIPTS)
	$(BIN)/hadolint Dockerfile $(wildcard docker/*.Dockerfile tests/*/*.Dockerfile)
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec $(COMPOSE_FILES)
	$(BIN)/python .ci/audit.py requirements.lock

lock: venv/dev.done ## The newest versions that the requirements allow, with their hashes, for setup.sh and the image
	$(BIN)/uv pip compile $(LOCK) requirements.txt --output-file requirements.lock
	$(BIN)/uv pip compile $(LOCK) requirements-collector.txt --constraints requirements.lock --output-file requirements-collector.lock

sbom: venv/dev.done ## What setup.sh and the image install, as a CycloneDX bill of materials: sbom.json
	$(BIN)/cyclonedx-py requirements requirements.lock --output-reproducible --output-file sbom.json

format: venv/dev.done ## Put the code into the one style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: venv/bench.done venv-tools/done ## Measure; the figures in the docs come from here
	$(BIN)/python -m bench

chaos: venv/dev.done ## Faults at random moments under load, ROUNDS=400 of them; nothing may be lost or doubled; also with HISTORY=1, FLEET=1
	$(BIN)/python -m tests.chaos --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED)) $(if $(HISTORY),--history) $(if $(FLEET),--fleet)

soak: venv/dev.done ## An hour's frames through a collector, RATE=200 a second: memory, journal, every row
	$(BIN)/python -m bench.soak --rate $(RATE)

clean: ## Remove the environments and what the demo left; data of `make run` stays
	rm -rf venv venv-tools venv-engines local-data/simulated

venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv venv

venv/local.done: requirements.txt requirements-local.txt | venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-local.txt
	touch $@

venv/dev.done: requirements-dev.txt venv/local.done
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

venv/bench.done: requirements-bench.txt venv/dev.done
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	touch $@

venv-tools/done: requirements-tools.txt
	$(PYTHON) -m venv venv-tools
	$(TOOLS)/pip install --quiet --disable-pip-version-check -r requirements-tools.txt
	touch $@

venv-engines/%/done: | venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D) chdb==$*
	touch $@
