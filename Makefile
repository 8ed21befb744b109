# Two commands matter: `make demo` and `make test`. Everything they need is installed into .venv from the package index.
VENV := .venv
PY := $(VENV)/bin/python
FAULT ?=
SEED ?=
OUT ?= .demo
PROOF ?=
CLIENTS ?=

.PHONY: help demo test test-clients check bench bench-serve bench-peer prove lock docs clean

help:
	@echo 'make demo    break a real little shop and let Quell say why (FAULT=name SEED=n)'
	@echo 'make test    everything that must hold: ruff, mypy, import-linter, tests'
	@echo 'make test-clients  real clients that are large, installed into .clients (4.3 GB; CLIENTS="node" for a part)'
	@echo 'make bench   print the figures and write them as JSON (long: about two hours; BENCH="step cli ..." for a part)'
	@echo 'make bench-serve  the figures of agents behind HTTP, beside a bare proxy (about five minutes)'
	@echo 'make bench-peer   our command line beside that of HolmesGPT, which is installed into .peers (0.8 GB)'
	@echo 'make prove   try to break every promise of PROMISES.md and print the table (PROOF="name ..." for a part)'
	@echo 'make lock    renew the development lock file'
	@echo 'make docs    regenerate the generated parts of the documents'

$(VENV)/.demo: pyproject.toml requirements/dev.lock scripts/bootstrap.py
	python3 scripts/bootstrap.py $(VENV) lab
	@touch $@

$(VENV)/.dev: pyproject.toml requirements/dev.lock scripts/bootstrap.py
	python3 scripts/bootstrap.py $(VENV) dev
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	@exec $(VENV)/bin/quell demo --out $(OUT) $(if $(FAULT),--fault $(FAULT)) $(if $(SEED),--seed $(SEED))

test: check
	@$(PY) -m pytest -n 3 --dist loadgroup || { \
	  echo '-- Something failed with three tests at a time. The same tests once more, one at a time;'; \
	  echo '-- what passes now depends on load or on its neighbours: that is a defect too, write it down.'; \
	  $(PY) -m pytest --last-failed --last-failed-no-failures none; }

# MCP Inspector and conformance suite (node), Open WebUI in headless Chromium (open-webui), Phoenix (phoenix).
test-clients: $(VENV)/.dev
	@$(PY) scripts/clients.py $(CLIENTS)

check: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.dev
	$(PY) -m bench $(BENCH)

# What the harness costs: streams beside a bare proxy, a turn, the first request, a client that leaves.
bench-serve: $(VENV)/.dev
	$(PY) -m bench serve-streams serve-turn serve-prompt serve-disconnect models-client ask peer

.peers/.done: requirements/peers.txt
	python3 -m venv .peers
	.peers/bin/python -m pip install --quiet --requirement requirements/peers.txt
	@touch $@

# Where it was installed, `make bench-serve` measures beside it too.
bench-peer: $(VENV)/.dev .peers/.done
	$(PY) -m bench peer

prove: $(VENV)/.dev
	$(PY) -m proofs --full $(PROOF)
	$(PY) -m proofs --write

lock: $(VENV)/.dev
	$(PY) scripts/lock.py

docs: $(VENV)/.dev
	$(PY) scripts/docs.py

clean:
	rm -rf $(VENV) .clients .peers .demo .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis
