# Everything a user types. Each target sets up what it needs (see tools/bootstrap.sh).

PYTHON_IN := .venv/bin/python
READY := .venv/.ready

.PHONY: help demo test long check clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(READY) ## A real Linux client served through the NIC's RTL, under a SYN flood
	@$(PYTHON_IN) -m acceltcp demo

test: $(READY) ## All tests
	$(PYTHON_IN) -m pytest -n 2 --dist worksteal

long: $(READY) ## The larger forms of some tests, that `make test` leaves out
	$(PYTHON_IN) -m pytest -n 2 --dist worksteal -m long

check: $(READY) ## Lint, types and the fast tests
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(PYTHON_IN) -m pytest -n 2 --dist worksteal -q -m "not slow and not long"

clean: ## Remove everything made here, the environment too
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml requirements.lock tools/bootstrap.sh
	@tools/bootstrap.sh
	@touch $@
