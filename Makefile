# Everything is one command; `make help` lists them.
#
# PYTHON   the interpreter that makes the environment (>= 3.11)
# LOCK     a file of versions with hashes that is installed first: requirements.lock is the environment of record
# VENV     its folder; `VENV=` (empty) uses the environment that is active now, e.g. conda's
# PEERS    the folder of a second one, which sees the first and has the libraries that this one is compared with
PYTHON   ?= python3
VENV     ?= .venv
LOCK     ?=
PEERS    ?= .venv-peers
CASE     ?=
PROFILE  ?= quick
NOTEBOOK ?=
JOBS     ?=
LAB_ARGS ?=
# What is asked for reaches the shell as data: a name with $(...) or a quote in it is refused, and not executed.
override PROFILE := $(value PROFILE)
override NOTEBOOK := $(value NOTEBOOK)
override JOBS := $(value JOBS)
override CASE := $(value CASE)
export PROFILE NOTEBOOK JOBS CASE

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

ifneq ($(strip $(VENV)),)
  RUN := $(VENV)/bin/python
  READY := $(VENV)/.installed
else
  RUN := python
  READY := active
endif
STUDY := $(RUN) -m fragile_lib.study
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadscope --no-loadscope-reorder
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=600
NB_KEYS := metadata.papermill cell.metadata.papermill

.PHONY: help study test test-unit test-notebooks lab bench test-peers bench-peers check-records test-faults mutations reports pdf lint format clean active

help: ## this list
	@echo "make TARGET [VARIABLE=value]"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'
	@echo
	@echo "  PROFILE=quick|laptop|paper   minutes | hours, the study of record in reports/ | the published scale"
	@echo "  NOTEBOOK=iris                one notebook instead of all"
	@echo "  CASE=mlp                     one case of bench-peers: logistic, mlp, cnn, resnet or traps"
	@echo "  JOBS=2                       runs side by side; default: the number of cores"
	@echo "  PYTHON=python3.12            makes the environment .venv; Python >= 3.11"
	@echo "  LOCK=requirements.lock       makes it of the versions of record, by their hashes (Python 3.11 on Linux)"
	@echo "  VENV=                        no .venv: use the environment that is active now, e.g."
	@echo "                               conda env create -f environment.yml && conda activate fragile && make study VENV="

study: $(READY) ## run what is not up to date, build the report, say where to open it
	@$(STUDY) run --profile="$$PROFILE" --notebook="$$NOTEBOOK" --jobs="$$JOBS"

# The longest start first: tests/conftest.py says which.
test: $(READY) ## all tests
	$(PYTEST) notebooks tests $(NBVAL) < /dev/null

test-unit: $(READY) ## the tests under tests/
	$(PYTEST) tests < /dev/null

test-notebooks: $(READY) ## run every notebook as it opens
	$(PYTEST) notebooks $(NBVAL) < /dev/null

lab: $(READY) ## open JupyterLab on the notebooks
	$(RUN) -m jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS) notebooks

check-records: $(READY) ## run a selection of committed runs again and compare every number (about 25 minutes)
	$(RUN) tests/check_records.py

test-faults: $(READY) ## kill, fill up, interrupt and edit grids, and compare with an undisturbed one (two minutes on idle cores)
	$(RUN) tests/faults.py

mutations: $(READY) ## break the science in 54 ways; each must be caught by its test (some minutes)
	$(RUN) tests/mutations.py

bench: $(READY) ## time the hot paths against plain loops and print the ratios
	$(RUN) tests/benchmarks/run.py

test-peers: $(PEERS)/.installed ## compare with captum, curvlinops, dattri, kronfluence and traker, traps included (a minute, and their installation)
	OMP_NUM_THREADS=1 $(PEERS)/bin/python -m pytest -q tests/peers/agreement.py < /dev/null

bench-peers: $(PEERS)/.installed ## time them side by side and write reports/peers.json (logistic, mlp and traps: some minutes; cnn and resnet: 33 and 14 of processor time)
	OMP_NUM_THREADS=1 $(PEERS)/bin/python tests/peers/bench.py

reports: $(READY) ## render reports/ again from its committed records; runs nothing
	@$(STUDY) report --published

pdf: $(READY) ## print the whole published report, with its bibliography, into study.pdf (needs Chromium)
	@$(STUDY) pdf --published

lint: $(READY) ## check style, and that notebooks are stored without outputs
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m nbstripout --verify --extra-keys "$(NB_KEYS)" notebooks/*.ipynb

format: $(READY) ## put code and notebooks into the stored form
	$(RUN) -m ruff check --fix-only .
	$(RUN) -m ruff format .
	$(RUN) -m nbstripout --extra-keys "$(NB_KEYS)" notebooks/*.ipynb

clean: ## remove caches; finished runs and .venv stay (remove runs/ and .venv/ by hand)
	rm -rf .pytest_cache .ruff_cache .snakemake build dist
	find fragile_lib tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# Made again only when the dependencies change.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: PYTHON = $(PYTHON): is missing or older than 3.11; name another, e.g. make PYTHON=python3.12" >&2; exit 2; }
	@# An environment whose making was interrupted has no pip.
	@$(RUN) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV): some minutes the first time"
	@$(if $(LOCK),$(RUN) -m pip install --disable-pip-version-check --quiet --require-hashes -r "$(LOCK)")
	@$(RUN) -m pip install --disable-pip-version-check --quiet -e '.[study,test]'
	@echo "compiling the kernels: about two minutes"
	@$(RUN) -c 'from fragile_lib.kernels import mlp; from fragile_lib.objectives import conv; mlp.compile_all(); conv.compile_all()'
	@touch $@

# Another environment, so that nothing that the other libraries bring can change the one of record, which it sees.
$(PEERS)/.installed: pyproject.toml | $(READY)
	@$(RUN) -m venv --clear $(PEERS)
	@$(RUN) -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$(echo $(PEERS)/lib/python3*/site-packages)/seen.pth"
	@$(RUN) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["peers"])' \
	  | xargs $(PEERS)/bin/python -m pip install --disable-pip-version-check --quiet || { \
	  echo "error: PEERS = $(PEERS): a library of the extra [peers] in pyproject.toml cannot be installed; see above" >&2; exit 2; }
	@touch $@

active:
	@$(RUN) -c 'from importlib import util; import sys; sys.exit(not all(map(util.find_spec, sys.argv[1:])))' \
	  fragile_lib papermill snakemake 2> /dev/null || { \
	  echo "error: VENV = '': the active environment lacks the project; run: pip install -e '.[study,test]'" >&2; exit 2; }
