# `make` shows where to start, `make help-all` every target and every variable.
# A command of pipeline/__main__.py is a target and its options are variables, so neither is written again here.

basics := demo test test-quick download train validate threshold predict check submission submit compete report leaderboard help-all
basic_variables := CONFIG DATA RUN FOLD SET GPUS FILE PY ON

# --- the pipeline: `make train FOLD=0` is `python -m pipeline train --fold 0` ---
commands_table := awk -f .ci/commands.awk pipeline/options.py pipeline/__main__.py
table := $(shell $(commands_table) | cut -f 1)# such as train/command/train train/value/GPUS/--gpus
commands := $(notdir $(foreach line,$(table),$(if $(findstring /command/,$(line)),$(line))))
options := $(filter-out $(foreach name,$(commands),$(name)/command/$(name)),$(table))
# The flag $2 for the variable $1, if that is set. A list gives every word a flag of its own, a switch is off for 0.
pass_value = $(if $($1),$2 $(call quote,$($1)))
pass_list = $(foreach item,$($1),$2 $(call quote,$(item)))
pass_switch = $(if $(filter-out 0,$($1)),$2)
quote = '$(subst ','\'',$1)'
pass = $(foreach l,$1,$(call pass_$(word 2,$(subst /, ,$l)),$(word 3,$(subst /, ,$l)),$(word 4,$(subst /, ,$l))))
given_to = $(foreach line,$(filter common/% $1/%,$(options)),$(if $(call pass,$(line)),$(line)))

$(commands):
	$(PY) -m pipeline $@ $(call pass,$(call given_to,$@))
train find-batch: folds
submission: validate threshold predict check ## validate, threshold, predict and check a trained run

# --- tests ---
## SUITES="kills faults"  torture: some of kills, faults and inputs; default: all
## SEED=0                 torture: another number kills at other moments
## SHORT=1                torture: a few of each; bench-predict: only the prediction
## SECONDS=600            fuzz: time of each fuzzer
## VERSIONS=torch-2.11    test-kaggle-image: the versions of tests/torch-2.11.txt instead
test: lint types unit ## lint, types and all tests, on all cores: what must pass before a commit
test-quick: lint ## lint and fast tests; without types and what trains, predicts or starts processes
	$(PY) -m pytest -n auto --dist loadfile -m "not slow"
lint: ## flake8
	$(PY) -m flake8 pipeline benchmarks tests docs
types: ## mypy
	$(PY) -m mypy
unit: ## all tests, on all cores
	$(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder
test-kaggle-image: ## all tests with the versions of Kaggle's image, in a venv of 6 GB (VERSIONS)
	@$(if $(VERSIONS),VERSIONS=$(call quote,$(VERSIONS)) )tests/older_versions.sh
torture: ## kill stages, fill disks, damage files: a table of how every stage reacts (SUITES SEED SHORT)
	$(PY) -m tests.torture $(SUITES) $(call pass_value,SEED,--seed) $(call pass_switch,SHORT,--short)
soak: ## predict 100,064 images and watch memory and open files (IMAGES)
	$(PY) -m tests.torture.soak $(IMAGES)
fuzz: ## fuzz the decoder, the checker and the readers of files (SECONDS)
	$(PY) -m pip install -qq --disable-pip-version-check --require-hashes -r tests/torture/fuzz.lock
	$(PY) -m tests.torture.fuzz $(or $(SECONDS),600)
browser: ## install Chromium and its driver, in which tests open the report (Debian, Ubuntu)
	@tests/install_browser.sh

# --- benchmarks: what stands in brackets are their variables, which become flags: STEPS is --steps ---
## STEPS=5                bench-train: timed steps of each loop
## BATCH=2                bench-train: images a step, without CONFIG
## IMAGES=800             bench-predict, soak: images to predict
## PIECE=1                gpu-proof: only this part of it, nine minutes at most
## REHEARSE=1             gpu-proof: all of it in small, on the CPU
## FILL=gpu_proof.jsonl   gpu-proof: only write these rows, its OUT, into the tables of the docs
bench-train: ## speed of reading and training, against a reference; or of a CONFIG (STEPS BATCH CONFIG DATA)
bench-kaggle: ## speed of downloading and verifying, against a plain copy and zipfile's own test
bench-predict: ## speed from test images to a submission, against the usual way (DATA RUN IMAGES SHORT)
bench-rooms: ## what a short training learns of synthetic rooms, against one class everywhere (SET)
bench-report: ## time of the report of 5,088 held-out images (DATA)
gpu-proof: ## measure on a GPU all that is not measured yet (DATA CONFIG PIECE OUT REHEARSE FILL)
bench-train bench-kaggle bench-predict bench-rooms bench-report gpu-proof:
	$(PY) -m benchmarks.$(subst -,_,$(@:bench-%=%)) $(call pass,$(shell grep ^$@: Makefile | sed -nf .ci/flags.sed))

# --- house-keeping ---
## UPGRADE=1              lock: the newest versions in range; default: only what setup.cfg asks for
lock: ## make requirements.lock again from the ranges in setup.cfg (UPGRADE)
	$(PY) -m pip install -qq --disable-pip-version-check --require-hashes -r requirements-uv.lock
	$(PY) -m uv pip compile setup.cfg --output-file requirements.lock $(if $(UPGRADE),--upgrade) --quiet --all-extras \
		--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate
clean: ## remove caches; data, runs and submissions stay
	rm -rf .mypy_cache .pytest_cache .hypothesis *.egg-info `find pipeline benchmarks tests -name __pycache__`
help: ## where to start
	@$(commands_table) | awk -v only="$(basics) $(basic_variables)" -f .ci/help.awk - Makefile
	@printf '\n%s\n' 'To compete: make download, then make compete CONFIG=configs/X.yaml (README.md); DRY_RUN=1 uploads nothing.' \
		'`make help-all` lists the rest; `python -m pipeline train --help` tells all about one command.'
help-all: ## all targets and all variables
	@$(commands_table) | awk -f .ci/help.awk - Makefile

# A variable on the command line that nothing uses is usually a typo, and a run is long.
known := $(foreach line,$(options),$(word 3,$(subst /, ,$(line)))) $(shell sed -n 's/^## \([A-Z_]*\)=.*/\1/p' Makefile)
given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
unknown := $(filter-out $(known),$(given))
$(if $(unknown),$(warning $(unknown): no target uses it; settings of a run are changed with SET, as in SET="train.epochs=3"))

# --- environment ---
# On a CPU. A thread that waits for the others spins 10,000 rounds and then sleeps: left to itself it spins so long
# that one busy neighbour on a core made training 6 times as slow, against 3 times with 20,000 rounds. And memory of a
# step is kept for the next one instead of being returned to the system. Figures in docs/EXPERIMENTS.md.
export GOMP_SPINCOUNT ?= 10000
export GLIBC_TUNABLES ?= glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296

## PYTHON=python3.12      makes .venv; default: the first of python3.13, 3.12, 3.11 and python3 that can
## PY=python3             runs everything, with its own packages; default: .venv, set up when needed
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c $(can_make_venv) 2>/dev/null && echo $$python && break; done)
can_make_venv := 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'
# .venv is complete when it holds the hash of its lock, which is written last. Times of files do not count.
python_targets := test-quick lint types unit torture soak fuzz lock gpu-proof $(addprefix bench-,train kaggle predict rooms report)
ifndef PY
PY := .venv/bin/python
lock_hash := $(firstword $(shell sha256sum requirements.lock))
venv_hash := $(shell test -x .venv/bin/python && cat .venv/.complete 2>/dev/null)
$(commands) $(python_targets): .venv/.complete
endif
.venv/.complete: $(if $(filter-out $(venv_hash),$(lock_hash)),force)
	@"$(PYTHON)" -c $(can_make_venv) 2>/dev/null || { echo >&2 \
		"$(or $(PYTHON),python3) is no Python 3.11 or newer with venv; install one" \
		"(on Debian python3 and python3-venv) or name another: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv with $(PYTHON) from requirements.lock (6 GB, some two minutes) ..."
	@test ! -L .venv || rm .venv; "$(PYTHON)" -m venv --clear .venv # a link must not empty what it points to
	@.venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	@echo $(lock_hash) > $@

.PHONY: $(commands) $(python_targets) submission test test-kaggle-image browser clean help help-all force
.DEFAULT_GOAL := help
.NOTPARALLEL: # stages named in one command follow one another
