VENV := .venv
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/requirements.stamp

export PYTHON  # so that both `make PYTHON=...` and the environment reach find_python.sh

.DEFAULT_GOAL := help
.PHONY: help train test lint

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' Makefile

train: $(STAMP)  ## set up .venv, then train a small student by relationship matching
	$(RUN) refilled_tf.train --gin_file=gin/quickstart.gin

test: $(STAMP)  ## run the tests
	$(RUN) pytest

lint: $(STAMP)  ## check the style
	$(RUN) ruff check

# Not bin/python, which is already there when a set-up is interrupted before it has pip.
$(VENV)/bin/pip:
	@python=$$(tools/find_python.sh) && set -x && "$$python" -m venv $(VENV)

$(STAMP): requirements.txt requirements-dev.txt | $(VENV)/bin/pip
	$(RUN) pip install --quiet --no-input --disable-pip-version-check -r requirements-dev.txt
	@touch $@
