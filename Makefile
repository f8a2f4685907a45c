VENV := .venv
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/requirements.stamp
PIP_FLAGS := --quiet --no-input --disable-pip-version-check
TFX := .venv-tfx
TFX_DEMO := export/tfx_demo
WEB := export/web
PORT := 8000
# What `make train` trains, the row of it that one would ship, and that as a file.
TRAINED := runs/quickstart
ROW := probe_pool
DIGITS := exports/quickstart/$(ROW)_none.tflite

export PYTHON  # so that both `make PYTHON=...` and the environment reach tools/*.sh

.DEFAULT_GOAL := help
.PHONY: help train demo test lint tfx-demo web-demo

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

train: $(STAMP)  ## set up .venv, then distil a teacher of printed letters into a reader of digits
	$(RUN) refilled_tf.train --gin_file=gin/quickstart.gin --work_dir=$(TRAINED)

demo: $(DIGITS) $(WEB)/node_modules/.package-lock.json  ## draw digits for what `make train` has trained
	cp "$(DIGITS)" $(WEB)/model.tflite
	python3 $(WEB)/serve.py $(PORT) '?draw'

$(DIGITS): $(TRAINED)/stages/$(ROW)/result.json
	$(RUN) export.tflite --work_dir=$(TRAINED) --stage=$(ROW) --quantize=none --output_dir=$(@D)

$(TRAINED)/stages/$(ROW)/result.json:
	$(MAKE) train

test: $(STAMP)  ## run the tests, or some: TESTS=tests/export, TESTS='-m stack'
	$(RUN) pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder \
	    $(TESTS)

lint: $(STAMP)  ## check the style and the types
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

tfx-demo: $(TFX)/requirements.stamp  ## run a TFX pipeline on digits, in a .venv-tfx of its own
	PYTHONWARNINGS=ignore TF_CPP_MIN_LOG_LEVEL=3 $(TFX)/bin/python -m export.tfx_demo.pipeline

$(TFX)/requirements.stamp: $(TFX_DEMO)/requirements.txt $(TFX_DEMO)/tfx.txt $(TFX)/pyvenv.cfg
	$(TFX)/bin/pip install $(PIP_FLAGS) -r $(TFX_DEMO)/requirements.txt
	$(TFX)/bin/pip install $(PIP_FLAGS) \
	    --no-deps --ignore-requires-python -r $(TFX_DEMO)/tfx.txt
	@touch $@

web-demo: $(WEB)/node_modules/.package-lock.json  ## try a model in a browser: MODEL=FILE.tflite
	$(if $(MODEL),cp "$(MODEL)",rm -f) $(WEB)/model.tflite
	python3 $(WEB)/serve.py $(PORT)

# npm writes this file last.
$(WEB)/node_modules/.package-lock.json: $(WEB)/package-lock.json
	npm ci --prefix $(WEB) --no-audit --no-fund
	@touch $@

# Asked every time; a whole environment of the right Python stays as it is.
$(VENV)/pyvenv.cfg: FORCE
	@tools/make_venv.sh $(VENV)

$(TFX)/pyvenv.cfg: FORCE
	@tools/make_venv.sh $(TFX) 3.11

FORCE:

$(STAMP): requirements.txt requirements-micro.txt requirements-onnx.txt requirements-dev.txt $(VENV)/pyvenv.cfg
	$(RUN) pip install $(PIP_FLAGS) -r requirements-dev.txt
	@touch $@
