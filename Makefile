# Everything a fresh machine needs is Python 3.11 or newer, and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PARITY ?= .venv-parity
LOWEST ?= .venv-lowest

.PHONY: demo demo-methods demo-docs test test-slow test-trackers test-lowest torture docs notebooks lint lint-docs format benchmark benchmark-gpu peers parity parity-fixtures parity-exports build check-build lowest clean

# Trains seven tasks on scikit-learn's digits and shows what came of it: minutes on two cores.
demo: $(VENV)/demo
	$(BIN)/python -m cwps_jax.main --config configs/digits.py $(ARGS)

# Every method on three of them, and on a small Vision Transformer for those that need one.
demo-methods: $(VENV)/demo
	$(BIN)/python -m cwps_jax.main --config configs/digits_methods.py $(ARGS)
	$(BIN)/python -m cwps_jax.main --config configs/digits_methods.py:vit $(ARGS)

# The demo's tables and pictures in README.md and docs/, all of the same three runs, the pictures of the first.
demo-docs: $(VENV)/demo
	rm -rf runs/docs
	for seed in 0 1 2; do \
	  $(BIN)/python -m cwps_jax.main --config configs/digits.py --config.seed=$$seed --workdir runs/docs/$$seed && \
	  cp runs/docs/$$seed/results.json docs/results/digits_seed$$seed.json || exit 1; \
	done
	cp runs/docs/0/report/channels.png runs/docs/0/report/relation.png runs/docs/0/report/total_bytes.png docs/images
	$(BIN)/python benchmarks/render.py

test: $(VENV)/test
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile --durations=15 $(ARGS)

test-slow: $(VENV)/test
	$(BIN)/python -m pytest -m slow $(ARGS)

# Weights & Biases and MLflow, 100 MB of packages, whose tests `make test` skips without them.
test-trackers: $(VENV)/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,wandb,mlflow]'
	$(BIN)/python -m pytest tests/test_metric_writers.py $(ARGS)

LOWEST_TESTS := buckets cache extras hugging_face load metric_writers nnx pictures pipeline server tfds_source transforms
# With the lowest versions that pyproject.toml allows on Python 3.11, in an environment of its own: the tests of what calls
# other packages. The pictures of the documentation are those of the newest Matplotlib.
test-lowest: $(LOWEST)/ready
	JAX_PLATFORMS=cpu $(LOWEST)/bin/python -m pytest -m "not slow" -k "not of_the_documentation" -n auto \
	  --maxprocesses 4 --dist loadfile $(addprefix tests/test_,$(addsuffix .py,$(LOWEST_TESTS))) $(ARGS)

# The long form of tests/test_writers.py: two writers at once, and a hundred that are killed. Minutes. And that of
# tests/test_torture_runs.py: whole runs that are stopped and killed on 1 and on 8 fake devices. An hour.
torture: $(VENV)/test
	JAX_PLATFORMS=cpu $(BIN)/python scripts/torture.py --out benchmarks/results/torture.json
	JAX_PLATFORMS=cpu $(BIN)/python scripts/torture_runs.py --out benchmarks/results/torture_runs.json

# The site of docs/, with the API from docstrings, into site/; a warning is an error. To read it, and to search in it,
# without a network: python -m http.server --directory site
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

# Runs the notebooks of examples/notebooks/ and keeps their outputs; Jupyter's kernel is asked for by nothing else.
notebooks: $(VENV)/demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check nbclient==0.11.0 ipykernel==7.4.0
	PYTHONPATH=. JAX_PLATFORMS=cpu $(BIN)/python scripts/notebooks.py $(ARGS)

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/prose.py

# The English of pages and docstrings, in the style of scripts/prose.toml: seconds.
lint-docs: $(VENV)/test
	$(BIN)/python scripts/prose.py

format: $(VENV)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The CPU column of docs/performance.md; what needs PyTorch is left to `make peers`. Hours on two cores.
benchmark: $(VENV)/demo
	$(BIN)/python benchmarks/all.py --device cpu --out benchmarks/results $(ARGS)
	$(BIN)/python benchmarks/render.py

# Its GPU column, in an environment that has jax[cuda12], torch and timm already: make benchmark-gpu PYTHON=...
benchmark-gpu:
	$(PYTHON) benchmarks/all.py --device gpu --out benchmarks/results $(ARGS)
	PYTHONPATH=. $(PYTHON) benchmarks/render.py

# Fine-tuning, CWPS and TAPS, here and in PyTorch.
peers: $(PARITY)/ready
	$(PARITY)/bin/python benchmarks/all.py --device cpu --only peers backbone --out benchmarks/results $(ARGS)
	$(PARITY)/bin/python benchmarks/render.py

# Every backbone's logits against independent PyTorch models, and losses and gradients of TAPS, LoRA and Piggyback
# against plain PyTorch ones. The second target writes what `make test` checks of that without torch.
parity: $(PARITY)/ready
	JAX_PLATFORMS=cpu $(PARITY)/bin/python -m parity.compare $(ARGS)

parity-fixtures: $(PARITY)/ready
	JAX_PLATFORMS=cpu $(PARITY)/bin/python -m parity.make_fixtures $(if $(CWPS_TEST_DATA),--data $(CWPS_TEST_DATA))

# Every task of the demo, exported and read by plain safetensors into a PyTorch model.
parity-exports: demo $(PARITY)/ready
	JAX_PLATFORMS=cpu $(PARITY)/bin/python -m parity.exported runs/digits/pool --out parity/exports.json

# A wheel and a source archive in dist/. Who builds the same commit with the same tools gets the same bytes.
build: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
build: export PIP_CONSTRAINT = $(CURDIR)/constraints.txt
build: $(VENV)/build
	$(BIN)/python -m build --outdir dist $(ARGS)

# Builds it again from a copy of the commit, and compares.
check-build: build
	rm -rf build
	mkdir build
	git archive HEAD | tar x -C build
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) PIP_CONSTRAINT=$(CURDIR)/constraints.txt \
	  $(BIN)/python -m build --outdir build/dist build
	for file in build/dist/*; do cmp $$file dist/$${file##*/} || exit 1; done

clean:
	rm -rf $(VENV) $(PARITY) $(LOWEST) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "cwps_jax needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/demo $(VENV)/test $(VENV)/docs $(VENV)/build: $(VENV)/%: $(VENV)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

$(LOWEST)/ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e '.[test]'
	touch $@

# After a bound has changed; uv finds the lowest version of what pyproject.toml names, the newest of all others.
lowest:
	uv pip compile --quiet --python-version 3.11 --resolution lowest-direct --extra test --no-annotate --no-header \
	  --output-file constraints-lowest.txt pyproject.toml

# An environment of its own: timm asks for torchvision, which brings another build of torch; it does without.
$(PARITY)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[demo]' huggingface_hub==2.4.0 PyYAML==6.0.3
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps timm==1.0.31
	touch $@
