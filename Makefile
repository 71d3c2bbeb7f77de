# Needs Python 3.11 or newer, pip and make; everything else goes into .venv. Another Python: make figures PYTHON=python3.12
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
NUMBERS := *7
AT_ONCE := 1
ONLY :=
MODULES :=
# a file at a time in each of some processes, in the order given
BY_FILE := --dist loadfile --no-loadscope-reorder
# the notebooks' kernels see no progress bars, so that committed outputs can be compared with fresh ones; two run at a time,
# and their threads must not wait by spinning
NBVAL := PYTHONPATH=tests PYTHONHASHSEED=0 TQDM_DISABLE=1 MPLBACKEND=module://matplotlib_inline.backend_inline GOMP_SPINCOUNT=0 \
	$(PY) -m pytest -n 2 $(BY_FILE) -p nbval_numbers --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg \
	--nbval-cell-timeout=1800 notebooks

# as in cam_utils/notebooks.py: glibc keeps the memory of large tensors, which halves the time of batches, and threads that
# wait for each other leave the processor to others soon
export GOMP_SPINCOUNT := 5000
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 4294967296
export MALLOC_TOP_PAD_ := 67108864

.DEFAULT_GOAL := help
.PHONY: help setup figures test site browser e2e determinism mutants supply notebooks clean

help: ## show this
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

setup: .venv/installed ## make .venv from requirements.lock (the other targets do it when needed)

figures: setup ## run every notebook, or ONLY="01 04", and write figures/; the executed notebooks are in build/notebooks/
	@$(PY) -m cam_utils figures --at-once $(AT_ONCE) $(ONLY:%=--only %)

test: setup ## lint, unit tests, and the committed outputs of the notebooks against fresh ones
	@echo "-- ruff"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@echo "-- unit tests"
	@# a third process works while others wait for what they have started or killed
	@$(PY) -m pytest -n 3 $(BY_FILE)
	@echo "-- notebooks"
	@$(NBVAL)

site: setup ## the notebooks as committed and the reference of cam_utils as web pages, in build/site/
	@rm -rf build/pages build/site && mkdir -p build/pages/docs
	@cp -r notebooks figures data README.md README.vi.md CITATION.cff docs/site/*.md build/pages && cp docs/*.md build/pages/docs
	@$(PY) -m sphinx -W --keep-going -q -c docs/site -d build/doctrees build/pages build/site
	@echo "build/site/index.html"

browser: ## Chromium, by apt-get where it is missing and may be installed
	@CHROMIUM="$(CHROMIUM)" tests/e2e/chromium >/dev/null

e2e: browser site ## every notebook, the explorer and the site in a real browser, Chromium; screenshots in build/e2e/
	@rm -rf build/e2e
	@browser=$$(CHROMIUM="$(CHROMIUM)" tests/e2e/chromium) && \
		CHROMIUM="$$browser" $(PY) -m pytest -n 2 tests/e2e --durations=20

determinism: setup ## after test, e2e and figures: their three runs of the notebooks drew the same figures, byte by byte
	@$(PY) -m cam_utils compare build/figures build/e2e/made
	@$(PY) -m cam_utils compare build/figures figures $(ONLY:%=--only %)

mutants: setup ## change the methods one operation at a time: the tests must notice; a tenth of the changes, all by NUMBERS='*'
	@$(PY) tests/mutation/check.py '$(NUMBERS)' $(MODULES)

notebooks: setup ## like figures, and put the fresh outputs into notebooks/, to be committed
	@$(PY) -m cam_utils figures --write-back

supply: setup ## the bill of materials (CycloneDX) and the licences of all packages and photos, checked, in build/supply/
	@mkdir -p build/supply
	@$(PY) -m cyclonedx_py environment --pyproject pyproject.toml --output-reproducible -o build/supply/sbom.json $(PY)
	@$(PY) -m piplicenses --with-system --with-urls --format=csv --output-file=build/supply/licences.csv
	@cp data/photos/photos.csv build/supply/licences_of_photos.csv
	@$(PY) -m pytest -q tests/test_supply.py tests/test_data.py -k "licence_on or materials or attribution"

clean: ## delete build/ and caches; .venv and figures/ stay
	@rm -rf build .pytest_cache .ruff_cache *.egg-info
	@find cam_utils tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

.venv/installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python found: install Python 3.11, or make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is not: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Making .venv with $(PYTHON)"
	@"$(PYTHON)" -m venv .venv || { echo "No venv: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	@echo "Installing requirements.lock: minutes, and on Linux some 3 GB of downloads, the first time"
	@# in two halves at once, which takes 3/5 of the time: pip keeps one core busy
	@awk '/^[a-z]/ { half = /^([a-i]|nvidia|torch|triton)/ ? "a" : "b" } { print > (".venv/lock-" half) }' half=b requirements.lock
	@$(PIP) --no-deps --require-hashes -r .venv/lock-a & \
		$(PIP) --no-deps --require-hashes -r .venv/lock-b; failed=$$?; wait $$! && exit $$failed
	@$(PY) -m pip check
	@echo "Installing cam_utils"
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@
