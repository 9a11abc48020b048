# Everything runs in an environment of the project's own, made on first use and updated when pyproject.toml changes.
# Needed beforehand: Python 3.10 or newer, and make. Variables can be set on the command line: make demo QUERY="..."

VENV  ?= .venv
TORCH ?= torch==2.13.0
QUERY ?=
DATA ?= ../shared/data
REPO_ID ?= e2rank-st/e2rank-minilm-l6
export QUERY

# The first Python that is new enough and can make an environment.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do \
	$$python -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$python && break; done)

# Without an NVIDIA GPU, torch comes from its own index of CPU builds, whose "2.13.0+cpu" sorts above the "2.13.0" of
# PyPI with its gigabytes of CUDA. An index that cannot be reached is skipped within seconds.
TORCH_INDEX ?= $(shell nvidia-smi -L >/dev/null 2>&1 || echo --extra-index-url https://download.pytorch.org/whl/cpu)

# Errors only: otherwise pip lists every package, and every index that has none of it.
INSTALL = $(VENV)/bin/python -m pip install -qq --disable-pip-version-check

.PHONY: help demo test coverage check format data train eval table benchmark publish-check clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.base  ## search the docstrings of Python's standard library; QUERY="..." asks something else
	@$(VENV)/bin/e2rank demo $${QUERY:+"$$QUERY"}

# Two processes with a thread each: most of the time goes into many small models and new processes.
PYTEST = OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

test: $(VENV)/.dev  ## run the tests
	$(PYTEST)

coverage: $(VENV)/.dev  ## run the tests, and tell the lines that none of them runs
	$(PYTEST) --cov

check: $(VENV)/.dev  ## lint, format and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(VENV)/.dev  ## fix what check would say about imports and format
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

# Both targets that read the data come here first.
data:
	@test -d "$(DATA)" || { echo "There is no folder $(DATA). Name the folder with the data: make $(MAKECMDGOALS) DATA=..." >&2; \
		echo "recipes/e2rank-minilm-l6/data.md says where the data is public, and how it is laid out." >&2; exit 1; }

train: data build/stage2/final  ## run both stages of the recipe on the data in DATA, into build, which is kept

# A stage goes on from its last checkpoint if it was interrupted. To train anew, remove the folders in build.
TRAIN = OMP_WAIT_POLICY=passive $(VENV)/bin/e2rank train
# The last of its files.
SLATES = build/slates/squad_dev.jsonl

build/stage2/final: build/stage1/final | $(SLATES)
	$(TRAIN) recipes/e2rank-minilm-l6/stage2.yaml --output_dir build/stage2 --resume true

build/stage1/final: | $(SLATES)
	$(TRAIN) recipes/e2rank-minilm-l6/stage1.yaml --output_dir build/stage1 --resume true

$(SLATES): | $(VENV)/.dev
	$(VENV)/bin/python recipes/e2rank-minilm-l6/make_slates.py --data "$(DATA)" --output build/slates

# Results that are there are kept. One of MTEB is checked: it has to be of the same model and data. One of reranking is
# not, but the card refuses results of several states of a model, and a test compares eval/prompt_size with the others.
# Remove both folders to measure everything anew.
EVAL = OMP_WAIT_POLICY=passive $(VENV)/bin/e2rank eval
RESULTS = eval/results
GIVEN = $(RESULTS)/dl21-bm25.json $(RESULTS)/dl21-splade.json
OWN = nfcorpus-dev nfc squad-dev mediqa-dev healthver-dev scifact
OWN_FILES = $(OWN:%=$(RESULTS)/%-own.json)
LAST = $(lastword $(OWN_FILES))
SIZES = eval/prompt_size/dl21-bm25.json
RELEVANCE = eval/relevance/relevance.json
RERANK = $(EVAL) rerank --data-dir "$(DATA)" --model bundled --baseline bundled-base
MTEB = $(EVAL) mteb --tasks NFCorpus,SciFact --data-dir "$(DATA)" --output-dir $(RESULTS)
FIGURES = --figures model_card/report
TABLE = $(EVAL) table $(RESULTS) --readme README.md --docs docs/evaluation.md

eval: data $(VENV)/.dev $(GIVEN) $(OWN_FILES) $(SIZES) $(RELEVANCE)  ## measure the bundled model and its base on the data in DATA; then report, card, table
	$(MTEB) --model bundled-base
	$(MTEB) --model bundled
	$(EVAL) report $(RESULTS) $(FIGURES)
	$(EVAL) report $(dir $(SIZES)) $(FIGURES) --only prompt-documents
	$(VENV)/bin/python model_card/render.py $(RESULTS)
	$(TABLE)

table: $(VENV)/.dev  ## print the results that are there, and put them into README.md and docs/evaluation.md
	$(TABLE)

$(GIVEN): $(RESULTS)/dl21-%.json: | $(VENV)/.dev
	$(RERANK) --tasks dl21 --first-stage $* --output-dir $(RESULTS)

# One command, because the splits of a corpus then share its vectors. The last file shows that the command has been run, so
# it goes when a task failed. Times without stored vectors are of three queries: each embeds a hundred documents for each
# of six systems.
comma = ,
empty =
space = $(empty) $(empty)
$(LAST): | $(VENV)/.dev
	$(RERANK) --tasks $(subst $(space),$(comma),$(OWN)) --own-first-stage --embedding-queries 3 --output-dir $(RESULTS) || \
		{ rm -f $@; exit 1; }

$(filter-out $(LAST),$(OWN_FILES)): | $(LAST)
	@test -f $@ || { echo "$@ is missing; remove $(LAST), too, and both are measured." >&2; exit 1; }

# Beside the other results, because it has systems that they do not have.
$(SIZES): | $(VENV)/.dev
	$(RERANK) --tasks dl21 --systems embedding,listwise --num-prompt-documents 1,2,3,4,5,6,8 --output-dir $(@D)

$(RELEVANCE): | $(VENV)/.dev
	$(EVAL) relevance --tasks nfcorpus-dev,squad-dev --data-dir "$(DATA)" --output-dir $(@D) --docs docs/reranking.md

benchmark: $(VENV)/.base  ## time reranking against the recipe of the public model card, in some minutes
	$(VENV)/bin/python eval/benchmark_rerank.py

publish-check: $(VENV)/.dev  ## build and verify the Hub repository of the bundled model, without the Hub
	HF_HUB_OFFLINE=1 $(VENV)/bin/python push_to_hub.py src/e2rank_st/bundled --repo-id $(REPO_ID) --dry-run

clean:  ## remove the environment and all caches
	rm -rf $(VENV) .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch by itself and without its dependencies, so that nothing else is looked up at the second index.
$(VENV)/.torch:
	$(if $(PYTHON),,$(error No Python 3.10 or newer with venv and pip found; install one, or name it: make PYTHON=/path/to/python3))
	$(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH) into $(VENV), about 200 MB without a GPU ..."
	@$(INSTALL) --no-deps --retries 1 --timeout 15 $(TORCH_INDEX) "$(TORCH)"
	@touch $@

$(VENV)/.base: $(VENV)/.torch pyproject.toml
	@echo "installing the package, about 300 MB with what it needs ..."
	@$(INSTALL) --editable ".[bundled]"
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "installing the tools for tests and checks ..."
	@$(INSTALL) --editable ".[bundled,dev]"
	@touch $@
