# Everything runs in an environment of the project's own, made on first use and updated when pyproject.toml changes.
# Needed beforehand: Python 3.10 or newer, and make. Variables can be set on the command line: make demo QUERY="..."

VENV  ?= .venv
TORCH ?= torch==2.13.0
QUERY ?=
DATA ?= ../shared/data
REPO_ID ?= e2rank-st/e2rank-minilm-l6
# The bundled models: settings in recipes/bundled, folders of adapter, results and card, and names on the command line.
RECIPES = minilm mpnet
CARDS = e2rank-minilm-l6 e2rank-mpnet-base
NAME_e2rank-minilm-l6 = bundled
NAME_e2rank-mpnet-base = bundled-mpnet
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
		echo "recipes/bundled/data.md says where the data is public, and how it is laid out." >&2; exit 1; }

train: data $(RECIPES:%=build/%/final)  ## train the adapters of the bundled models on the data in DATA, into build, which is kept

# The last of its files.
SLATES = build/slates/squad_dev.jsonl

# A run goes on from its last checkpoint if it was interrupted. To train anew, remove the folders in build.
build/%/final: | $(SLATES)
	OMP_WAIT_POLICY=passive $(VENV)/bin/e2rank train recipes/bundled/$*.yaml --output_dir build/$* --resume true

$(SLATES): | $(VENV)/.dev
	$(VENV)/bin/python recipes/bundled/make_slates.py --data "$(DATA)" --output build/slates

# Results that are there are kept. One of MTEB is checked: it has to be of the same model and data. One of reranking is
# not, but the card refuses results of several states of a model, and a test compares eval/prompt_size with the others.
# Remove a model's folders to measure everything anew.
EVAL = OMP_WAIT_POLICY=passive $(VENV)/bin/e2rank eval
# The larger model has the test sets only: embedding the other collections takes hours on two cores.
OWN_e2rank-minilm-l6 = nfcorpus-dev nfc squad-dev mediqa-dev healthver-dev scifact
OWN_e2rank-mpnet-base = nfc scifact
RELEVANCE = eval/relevance/relevance.json
TABLE = $(EVAL) table $(CARDS:%=eval/results/%) --readme README.md --docs docs/evaluation.md

# By name: files that only patterns name are intermediate to make, so it would not miss them.
RESULTS = $(foreach card,$(CARDS),$(addprefix eval/results/$(card)/,dl21-bm25.json dl21-splade.json scifact-own.json) \
	eval/prompt_size/$(card)/dl21-bm25.json)

eval: data $(RESULTS) $(RELEVANCE) $(CARDS:%=report-%)  ## measure the bundled models on the data in DATA; then report, cards, table
	$(VENV)/bin/python model_card/render.py
	$(TABLE)

table: $(VENV)/.dev  ## print the results that are there, and put them into README.md and docs/evaluation.md
	$(TABLE)

# How to ask for the model of a folder of results. Where a first stage is strong, its scores count.
NAME = $(NAME_$*)
RERANK = $(EVAL) rerank --data-dir "$(DATA)" --model $(NAME) --vectors build/vectors
FUSED = --systems embedding,rocchio,listwise,fused --first-stage-weight 0.7

eval/results/%/dl21-bm25.json: | $(VENV)/.dev
	$(RERANK) --tasks dl21 --first-stage bm25 --output-dir $(@D)

eval/results/%/dl21-splade.json: | $(VENV)/.dev
	$(RERANK) --tasks dl21 --first-stage splade $(FUSED) --output-dir $(@D)

comma = ,
space = $() $()
# One command, because the splits of a corpus then share its vectors. The file of the last task shows that the command has
# been run, so it goes when a task failed. Times without stored vectors are of three queries: each embeds a hundred
# documents for each system.
eval/results/%/scifact-own.json: | $(VENV)/.dev
	$(RERANK) --tasks $(subst $(space),$(comma),$(OWN_$*)) --own-first-stage --embedding-queries 3 --output-dir $(@D) || { rm -f $@; exit 1; }

# Beside the other results, because it has systems that they do not have.
eval/prompt_size/%/dl21-bm25.json: | $(VENV)/.dev
	$(RERANK) --tasks dl21 --systems embedding,listwise --num-prompt-documents 1,2,3,4,5,6,8 --output-dir $(@D)

# A file of this name is never made, so this is always done.
report-%: $(RESULTS)
	@for task in $(OWN_$*); do test -f eval/results/$*/$$task-own.json || \
		{ echo "$$task-own.json is missing; remove eval/results/$*/scifact-own.json, and all are measured." >&2; exit 1; }; done
	$(EVAL) mteb --tasks NFCorpus,SciFact --data-dir "$(DATA)" --model $(NAME) --vectors build/vectors --output-dir eval/results/$*
	$(EVAL) report eval/results/$* --figures model_card/$*/report
	$(EVAL) report eval/prompt_size/$* --figures model_card/$*/report --only prompt-documents

$(RELEVANCE): | $(VENV)/.dev
	$(EVAL) relevance --tasks nfcorpus-dev,squad-dev --data-dir "$(DATA)" --output-dir $(@D) --docs docs/reranking.md

benchmark: $(VENV)/.base  ## time reranking against a cross-encoder and plain encode, in some minutes
	$(VENV)/bin/e2rank bench

publish-check: $(VENV)/.dev  ## build and verify the Hub repository of the bundled model without the Hub, and write its Space
	HF_HUB_OFFLINE=1 $(VENV)/bin/python push_to_hub.py src/e2rank_st/bundled/e2rank-minilm-l6 --repo-id $(REPO_ID) --space model_card/space --dry-run

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
	@echo "installing the package, about 650 MB with what it needs ..."
	@$(INSTALL) --editable ".[bundled,search]"
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "installing the tools for tests and checks ..."
	@$(INSTALL) --editable ".[bundled,dev]"
	@touch $@
