# make quickstart          set up, run the main job on this machine          -> runs/quickstart
# make test                set up, pass the tests a change needs
# make test-all            every test and drill: what CI runs
# make VENV=PATH ...       another environment than .venv
# make TARGET ARGS="..."   hand arguments on

VENV ?= .venv
ARGS ?=
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.cprune-installed
NEEDED_GB := 9

.PHONY: quickstart test test-all lint types format clean bench-transplant bench-tuning bench-code bench-scaling bench-verdicts bench-cost-model bench-networks compare setup
.DEFAULT_GOAL := quickstart

quickstart: $(STAMP)
	$(VENV)/bin/cprune run examples/quickstart.yaml $(ARGS)

test: $(STAMP)
	$(PYTHON) -m pytest -m "not slow and not drill" $(ARGS)

# What measures on a device or stops and freezes devices has the machine to itself; the rest needs
# no quiet machine, and runs two at a time, the longest first.
BY_THEMSELVES := tests/contract tests/drills tests/integration
LONGEST := tests/training tests/whole_runs
BESIDE := $(LONGEST) $(filter-out $(LONGEST) $(BY_THEMSELVES) tests/__pycache__,$(patsubst %/,%,$(wildcard tests/*/)))
test-all: $(STAMP)
	$(PYTHON) -m pytest $(BY_THEMSELVES) $(ARGS)
	$(PYTHON) -m pytest -n 2 --dist worksteal $(BESIDE) $(ARGS)

lint: $(STAMP)
	$(PYTHON) -m ruff check . $(ARGS)
	$(PYTHON) -m ruff format --check .

types: $(STAMP)
	$(PYTHON) -m mypy $(ARGS)

format: $(STAMP)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

bench-transplant: $(STAMP)
	$(PYTHON) benchmarks/transplant.py $(ARGS)

bench-tuning: $(STAMP)
	$(PYTHON) benchmarks/tuning.py $(ARGS)

bench-code: $(STAMP)
	$(PYTHON) benchmarks/code.py $(ARGS)

bench-scaling: $(STAMP)
	$(PYTHON) benchmarks/scaling.py $(ARGS)

bench-verdicts: $(STAMP)
	$(PYTHON) benchmarks/verdicts.py $(ARGS)

compare: $(STAMP)
	$(PYTHON) benchmarks/compare.py $(ARGS)

bench-networks: $(STAMP)
	$(PYTHON) benchmarks/networks.py $(ARGS)

bench-cost-model: $(STAMP)
	$(PYTHON) benchmarks/cost_model.py $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find orchestrator workers device_agents schemas tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(STAMP)

# The environment is made once, and again brought up to date when the lock or the project file changes.
$(STAMP): requirements.lock pyproject.toml
	@set -eu; \
	folder="$(VENV)"; while [ ! -d "$$folder" ]; do folder=$$(dirname "$$folder"); done; \
	if [ -z "$${CXX:-}$${CC:-}" ]; then \
	  found=""; \
	  for name in g++ gcc clang++ clang c++ cc; do \
	    if command -v "$$name" >/dev/null 2>&1; then found="$$name"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "make: there is no C/C++ compiler, and TVM links with one; install build-essential (Debian, Ubuntu) or gcc-c++ (Fedora), or name one in CXX." >&2; exit 1; \
	  fi; \
	fi; \
	if [ ! -x "$(PYTHON)" ]; then \
	  free_gb=$$(df -Pk "$$folder" | awk 'NR == 2 {printf "%d", $$4 / 1000000}'); \
	  if [ "$$free_gb" -lt "$(NEEDED_GB)" ]; then \
	    echo "make: the environment $(VENV) needs about $(NEEDED_GB) GB, and $$folder has $$free_gb GB free; free some space or name another place with make VENV=PATH." >&2; exit 1; \
	  fi; \
	  python=""; \
	  for name in python3 python3.13 python3.12 python3.11; do \
	    if command -v "$$name" >/dev/null 2>&1 && "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'; then python="$$name"; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "make: no Python 3.11, 3.12 or 3.13 was found as python3, python3.13, python3.12 or python3.11; install one." >&2; exit 1; \
	  fi; \
	  if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "make: $$python cannot make virtual environments; install its venv package (Debian, Ubuntu: python3-venv)." >&2; exit 1; \
	  fi; \
	  echo "making $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv "$(VENV)"; \
	fi; \
	echo "installing into $(VENV) (a few minutes the first time)"; \
	"$(PYTHON)" -m pip install --quiet --disable-pip-version-check -r requirements.lock; \
	"$(PYTHON)" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	touch "$(STAMP)"
