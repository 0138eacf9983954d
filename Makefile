# `make demo` and `make test` do all their own set-up; they need Python 3.11, a C/C++ compiler and make.

PYTHON ?= python3
VENV := .venv/bin
# Bytecode is kept, or every process compiles what it imports, torch for ten seconds.
unexport PYTHONDONTWRITEBYTECODE
# A file's tests stay on one core, beside the fixtures that they share; so do those of the stack.
ON_EVERY_CORE := --numprocesses auto --dist loadfile

.PHONY: help setup demo test soak unit integration check protos client golden golden-exports acceptance lock clean

help: ## Show what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | column -t -s '|'

setup: ## Virtual environment, packages, llama.cpp, Postgres, nats-server; instant when done
	@$(PYTHON) -m deploy.local.bootstrap

demo: setup ## One run, end to end: dataset to a GGUF that answers, with its bill
	@$(VENV)/python -m tests.demo $(ARGS)

# Both parts run, so that one failure does not hide another; an interrupt ends the whole.
test: setup ## Every test that needs no GPU: unit first, then those that start servers
	@trap 'exit 130' INT; units=passed; servers=passed; \
	$(VENV)/python -m pytest $(ON_EVERY_CORE) || units=FAILED; \
	$(VENV)/python -m pytest --numprocesses 2 --dist loadfile --timeout 900 \
	  -m "not gpu and (integration or e2e or chaos or slow)" || servers=FAILED; \
	printf 'Unit tests:   %s\nServer tests: %s\n' "$$units" "$$servers"; \
	test "$$units $$servers" = "passed passed"

soak: setup ## What takes longer than `make test` may: exports by the hundred, other processors
	$(VENV)/python -W ignore -m tests.chaos.sound_exports
	OPENBLAS_CORETYPE=Prescott $(VENV)/python -W ignore -m tests.chaos.sound_exports --kernel baseline
	$(VENV)/python -W ignore -m tests.chaos.other_processors

unit: setup ## The tests that need no server, GPU or network
	$(VENV)/python -m pytest $(ON_EVERY_CORE)

integration: setup ## The tests that start Postgres or nats-server
	$(VENV)/python -m pytest -m integration --timeout 300

check: setup ## Linters, types, protos, tidy rules, deployment files
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/python -m tests.tidy.protos check
	$(VENV)/python -m pytest tests/tidy
	$(VENV)/python -m tests.tidy.deployment

protos: setup ## Generate libs/tunesmith/api from the contracts
	$(VENV)/buf format -w
	$(VENV)/python -m tests.tidy.protos generate

client: setup ## Generate libs/tunesmith/client, the sync client, from libs/tunesmith/aio
	$(VENV)/python -m tests.tidy.sync_client

golden: setup ## Regenerate the pages that are made from code; read the diff
	$(VENV)/python -m lexicon.document > docs/faults.md.making && mv docs/faults.md.making docs/faults.md
	$(VENV)/python -m scheduler.diagram docs/run-lifecycle.md

golden-exports: setup ## Regenerate the digests of the golden exports; read the diff
	$(VENV)/python -m tests.integration.exporter.golden_exports > tests/golden/exporter/exports.json.making
	mv tests/golden/exporter/exports.json.making tests/golden/exporter/exports.json

acceptance: setup ## Which rows of the acceptance table tests name, and how many tests name each
	@$(VENV)/python -m tests.tidy.acceptance

COMPILE = $(VENV)/uv pip compile pyproject.toml --universal --python-version 3.11 \
  --overrides requirements/overrides.txt --no-emit-package torch --generate-hashes --no-header \
  --no-annotate --no-emit-index-url --no-emit-find-links --quiet
AS_LOCKED = $(COMPILE) --constraints requirements/lock.txt

lock: setup ## Resolve requirements/*.txt from pyproject.toml
	$(COMPILE) requirements/torch-needs.in --output-file requirements/lock.txt \
	  --extra cpu-train --extra export --extra stack --extra build --extra dev
	$(AS_LOCKED) --output-file requirements/service.txt
	$(AS_LOCKED) requirements/torch-needs.in --extra cpu-train --output-file requirements/trainer.txt
	$(AS_LOCKED) requirements/torch-needs.in --extra export --extra build \
	  --output-file requirements/exporter.txt
	$(VENV)/uv pip compile requirements/mlx.in --universal --python-version 3.11 --no-deps \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet \
	  --output-file requirements/mlx.txt
	printf 'uv==0.13.8\n' | $(VENV)/uv pip compile - --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --output-file requirements/uv.txt --quiet

clean: ## Remove the environment and what tools left; keeps the cache and every stack's data
	rm -rf .venv .venv.lock .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
