# The table of contents: `make` alone prints every target and every variable, from the `##` comments below.
# A stage is `python -m pipeline STAGE` with a flag for each variable that was given, and for no other.

##@ Start here
help: ## this page, as make alone
demo: ## the whole way on drawn cars, from no data to a score that came back (OFFLINE)
	$(call stage,demo,$(call switch,--offline,OFFLINE)$(demo_flags))
test: lint types unit ## lint, types and unit: what must pass before a commit

##@ Stages
download: ## bring the competition's files from Kaggle, whole or not at all (HQ ONLY)
	$(call stage,download,$(call switch,--hq,HQ)$(foreach name,$(ONLY), --only $(call quote,$(name))))
demo-data: ## draw a synthetic competition folder (CARS TEST_CARS SEED)
	$(call stage,demo-data,$(demo_flags))
demo-rooms: ## draw rooms in a file of the structure of NYU Depth v2 (SCENES SEED SPLITS)
	$(call stage,demo-rooms,$(call given,--scenes,SCENES)$(call given,--seed,SEED)$(call switch,--splits,SPLITS))
shrink: ## make a light copy of a competition folder, for a slow link (OUT SCALE QUALITY)
	$(call stage,shrink,$(call given,--out,OUT)$(call given,--scale,SCALE)$(call given,--quality,QUALITY))
folds: ## split the pictures into folds that no make, or other group, crosses
	$(call stage,folds)
train: folds ## train the fold FOLD=0, others or all; the same command again goes on (GPUS DETERMINISTIC)
	$(call stage,train,$(train_flags))
find-batch: folds ## measure how many pictures at once fit into the memory
	$(call stage,find-batch)
validate: ## judge each trained fold on the pictures that it never saw
	$(call stage,validate)
threshold: ## find the cut with the best out-of-fold Dice
	$(call stage,threshold)
blend: ## find what each of several runs should weigh in their mean (RUNS)
	$(call stage,blend,$(runs_flag))
predict: ## write submissions/RUN.csv.gz, or go on where that was stopped (RUNS GPUS ON_BAD_IMAGE)
	$(call stage,predict,$(runs_flag)$(call given,--gpus,GPUS)$(call given,--on-bad-image,ON_BAD_IMAGE))
check: ## say what is wrong with a submission (FILE RUNS)
	$(call stage,check,$(call given,,FILE)$(runs_flag))
submit: ## predict if need be, check, upload, await the score (FILE RUNS MESSAGE DRY_RUN FORCE LEDGER)
	$(call stage,submit,$(call given,,FILE)$(runs_flag)$(call given,--message,MESSAGE)$(call switch,--dry-run,DRY_RUN)$(call \
		switch,--force,FORCE)$(call given,--ledger,LEDGER))
submission: ## validate, threshold, predict and check, for a trained run
	$(call stage,validate)
	$(call stage,threshold)
	$(call stage,predict)
	$(call stage,check)

##@ Looking closer
report: ## a page that shows where a run is wrong: runs/RUN/report/index.html (RUNS)
	$(call stage,report,$(runs_flag))
compare: ## a page that shows where one of two runs is better (RUNS)
	$(call stage,compare,$(runs_flag))
cutout: ## cut the object out of photos: PNGs with a transparent background, or classes (PHOTO OUT)
	$(call stage,cutout,$(foreach photo,$(PHOTO), $(call quote,$(photo)))$(call given,--out,OUT))
score: ## grade a submission against a solution.csv (FILE RUNS SOLUTION)
	$(call stage,score,$(call given,,FILE)$(runs_flag)$(call given,--solution,SOLUTION))
leaderboard: ## the ledger of submissions, and where their scores would have stood (LEDGER)
	$(call stage,leaderboard,$(call given,--ledger,LEDGER))
reproduce: ## print the commands that make a submission of the ledger again, or predict (ROW GO LEDGER)
	$(call stage,reproduce,$(call given,,ROW)$(call switch,--go,GO)$(call given,--ledger,LEDGER))
bench-train: ## the speed of reading and training, against a reference loop (STEPS BATCH)
	$(PY) -m benchmarks.train$(call given,--steps,STEPS)$(call given,--batch-size,BATCH)
bench-kaggle: ## the speed of downloading and verifying, against a plain copy and zipfile's own test
	$(PY) -m benchmarks.kaggle
bench-predict: ## the speed from test pictures to a submission, against the usual way (DATA RUN IMAGES)
	$(PY) -m benchmarks.predict$(call given,--data,DATA)$(call given,--run,RUN)$(call given,--images,IMAGES)
bench-rooms: ## what a short training learns of drawn rooms, against one class everywhere (SET)
	$(PY) -m benchmarks.rooms$(if $(SET), --set$(foreach word,$(SET), $(call quote,$(word))))
bench-report: ## the time that the report of 5,088 held-out pictures takes (DATA)
	$(PY) -m benchmarks.report$(call given,--data,DATA)
torture: ## kills, full disks, bad files: a table of what every stage bore (ROOMS SEED SHORT)
	$(PY) -m tests.torture$(foreach room,$(ROOMS), $(call quote,$(room)))$(call given,--seed,SEED)$(call \
		switch,--short,SHORT)
soak: ## predict 100,064 pictures, watched for memory and files that are not given back (IMAGES)
	$(PY) -m tests.torture.soak$(call given,,IMAGES)
fuzz: ## bytes that nobody thought of into the decoder, the checker and the readers of files (SECONDS)
	$(PY) -m pip install -qq --disable-pip-version-check --require-hashes -r tests/torture/fuzz.lock
	$(PY) -m tests.torture.fuzz $(or $(SECONDS),600)

##@ House-keeping
lint: ## flake8
	$(PY) -m flake8 pipeline benchmarks tests docs
types: ## mypy
	$(PY) -m mypy
unit: ## pytest
	$(PY) -m pytest
lock: ## make requirements.lock again from the ranges in setup.cfg (UPGRADE)
	$(PY) -m pip install -qq --disable-pip-version-check --require-hashes -r requirements-uv.lock
	$(PY) -m uv pip compile setup.cfg --output-file requirements.lock $(if $(UPGRADE),--upgrade) --quiet --all-extras \
		--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate
browser: ## install Chromium and its driver, in which tests open the report (Debian, Ubuntu)
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null && fc-list | grep -q Inter || \
		{ test -x "$$(command -v apt-get)" || { echo >&2 "There is no apt-get here; install Chromium and its" \
		"chromedriver in this system's own way."; exit 1; }; as=; test $$(id -u) = 0 || as=sudo; \
		test -z "$$as" || command -v sudo >/dev/null || { echo >&2 "To install Chromium one must be root" \
		"or have sudo; as root: apt-get install chromium chromium-driver fonts-inter"; exit 1; }; \
		$$as apt-get update -qq && $$as apt-get install -qq -y --no-install-recommends chromium chromium-driver \
		fonts-inter fontconfig >/dev/null; }
clean: ## remove caches; data, runs and submissions stay
	rm -rf .mypy_cache .pytest_cache .hypothesis *.egg-info
	find pipeline benchmarks tests -name __pycache__ -prune -exec rm -rf {} +

##@ Variables, as in: make train CONFIG=configs/cpu.yaml SET="train.epochs=3 train.seed=1"
## CONFIG=configs/x.yaml    a run's settings; without it configs/unet_640.yaml
## DATA=dir                 the competition folder, which is only read; without it the config's
## RUN=name                 names runs/RUN/ and submissions/RUN.csv.gz; without it the config's file name
## FOLD=0                   a number, several as 0,1, or all; without it 0 is trained, then all that are
## SET="a.b=1 c.d=2"        settings laid over the config's
## FILE=x.csv.gz            check, score, submit: the submission; without it the run's own
## SOLUTION=x.csv           score: without it solution.csv in the competition folder
## HQ=1                     download: the pictures with less JPEG compression
## ONLY="a.zip b.zip"       download: these files and no others
## MESSAGE="two folds"      submit: what Kaggle shows beside the score; without it what made the submission
## DRY_RUN=1                submit: do all but upload, and print the command that would
## FORCE=1                  submit: also what was submitted already
## LEDGER=x.csv             submit, leaderboard, reproduce: without it submissions/ledger.csv
## ROW=3                    reproduce: the number that leaderboard shows
## GO=1                     reproduce: predict again, and compare the bytes
## OFFLINE=1                demo: without the server that stands in for Kaggle
## CARS=32                  demo, demo-data: cars to train on
## TEST_CARS=8              demo, demo-data: cars to predict
## SEED=0                   demo, demo-data, demo-rooms: another number draws others; torture: other moments
## SCENES=48                demo-rooms: rooms, of four pictures each
## SPLITS=1                 demo-rooms: a splits.mat, too, with the first half of the rooms to train on
## OUT=dir                  shrink: the folder of the copy; cutout: of the PNGs
## RUNS="a b c"             blend, predict, check, score, submit: their mean, called a+b+c without RUN=
##                          compare: two; report: of a, and the others must accuse a mask, too
## ON_BAD_IMAGE=empty       predict: an empty row for a picture that cannot be read; without it an error
## PHOTO="a.jpg b.jpg"      cutout: of any size
## SCALE=2                  shrink: 2, 4 or 8 times smaller
## QUALITY=90               shrink: of the JPEGs, 1 to 100
## GPUS=4                   train: of this machine, on one fold together or each on a fold of FOLD=all; predict
## DETERMINISTIC=1          train: the same bits each time, on a GPU too, if slower
## STEPS=5                  bench-train: timed steps of each loop
## BATCH=2                  bench-train: pictures a step
## IMAGES=800               bench-predict, soak: pictures to predict; with a GPU without it 20,000
## ROOMS="kills faults"     torture: of kills, faults and inputs; without it all
## SHORT=1                  torture: a few of each
## SECONDS=60               fuzz: for each of them; without it 600
## UPGRADE=1                lock: the newest versions in range; without it only what setup.cfg asks for
## PYTHON=python3.12        makes .venv; without it the first of python3.13, 3.12, 3.11 and python3 that can
## PY=python3               runs everything, with the packages that it has; without it .venv, set up if need be

# The command of a stage, a flag for a variable that was given, one that takes no value, and a word as the shell
# reads it back.
stage = $(PY) -m pipeline $1$2$(shared_flags)
given = $(if $($2),$(if $1, $1) $(call quote,$($2)))
switch = $(if $(filter-out 0,$($2)), $1)
quote = '$(subst ','\'',$1)'
shared_flags = $(call given,--config,CONFIG)$(call given,--fold,FOLD)$(call given,--data,DATA)$(call \
	given,--run,RUN)$(if $(SET), $(foreach word,$(SET),--set $(call quote,$(word))))
demo_flags = $(call given,--cars,CARS)$(call given,--test-cars,TEST_CARS)$(call given,--seed,SEED)
runs_flag = $(if $(RUNS), --runs$(foreach run,$(RUNS), $(call quote,$(run))))
train_flags = $(call given,--gpus,GPUS)$(if $(DETERMINISTIC), --deterministic)
ifdef MAKE_TERMOUT
bold := \033[1m
plain := \033[0m
endif

# A variable that stands in the command and in no line above is a slip more often than not, and a run is long.
known := $(shell awk -F '[ =]' '/^## [A-Z_]+=/ {print $$2}' $(firstword $(MAKEFILE_LIST)))
unknown := $(filter-out $(known),$(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name))))
$(if $(unknown),$(warning $(unknown): not among the variables that `make` lists, and only handed on as part of the \
	environment; a setting of a run is changed with SET, as in SET="train.epochs=3"))

# On a CPU. A thread that waits for the others spins 10,000 rounds and then sleeps: left to itself it spins so long
# that one busy neighbour on a core made training 6 times as slow, against 3 times with 20,000 rounds. And memory of a
# step is kept for the next one instead of being handed back to the system. Figures in docs/EXPERIMENTS.md.
export GOMP_SPINCOUNT ?= 10000
export GLIBC_TUNABLES ?= glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296

# .venv is whole when it holds the hash of the lock that it was made from: the last thing to be written. Times do
# not count, so that neither a fresh checkout nor a copied folder sets up again what is there.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c $(can_make_venv) 2>/dev/null && echo $$python && break; done)
can_make_venv := 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'
ifdef PY
venv :=
else
PY := .venv/bin/python
venv := .venv/.complete
lock_hash := $(firstword $(shell sha256sum requirements.lock))
venv_hash := $(shell test -x .venv/bin/python && cat .venv/.complete 2>/dev/null)
endif
.venv/.complete: $(if $(filter-out $(venv_hash),$(lock_hash)),force)
	@"$(PYTHON)" -c $(can_make_venv) 2>/dev/null || { echo >&2 \
		"$(or $(PYTHON),python3) is no Python 3.11 or newer with venv; install one" \
		"(on Debian python3 and python3-venv) or name another: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv with $(PYTHON) from requirements.lock (6 GB, some two minutes) ..."
	@"$(PYTHON)" -m venv --clear .venv
	@.venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	@echo $(lock_hash) > $@

run_python := demo download demo-data demo-rooms shrink folds train find-batch validate threshold blend predict cutout \
	check submit submission score leaderboard reproduce report compare bench-train bench-predict bench-kaggle bench-report \
	bench-rooms torture soak fuzz lint types unit lock
$(run_python): $(venv)
help:
	@awk -F ':.*## ' '/^##@ / {printf "\n$(bold)%s$(plain)\n", substr($$0, 5)} /^## / {print "  " substr($$0, 4)} \
		/^[a-z-]+:.*## / {printf "  %-15s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
.PHONY: $(run_python) test help browser clean force
.DEFAULT_GOAL := help
.NOTPARALLEL: # stages named in one command follow one another
