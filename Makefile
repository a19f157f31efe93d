# `make help` says what there is. Installation talks on stderr: stdout belongs to the answer.

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install $(shell test -t 2 || echo --quiet) --disable-pip-version-check -c constraints.txt
ARGS ?=

.PHONY: help chat serve test heavy lint venv clean

help:
	@echo 'make chat    talk with the default model; text on stdin is answered on stdout'
	@echo 'make serve   serve the default model to OpenAI and Anthropic clients at port 8000'
	@echo 'make test    run the tests'
	@echo 'make heavy   run the tests that take minutes or gigabytes'
	@echo 'make lint    check style, types and imports'
	@echo 'make venv    make the empty environment .venv'
	@echo 'make clean   remove .venv and what the tools left'
	@echo
	@echo "ARGS='...' passes options on, as in make chat ARGS='--temperature 0'; PYTHON=python3.12 chooses the Python."

chat: .venv/.run
	@$(BIN)/cierzo chat $(ARGS)

serve: .venv/.serve
	@$(BIN)/cierzo serve $(ARGS)

test: .venv/.test
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not heavy' -n 2 --dist loadfile $(ARGS)

# Status 5 says that no test was chosen.
heavy: .venv/.test
	@$(BIN)/pytest -m heavy $(ARGS) || [ $$? -eq 5 ]

lint: .venv/.test
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache --no-logo

venv: .venv/.made

.venv/.made:
	@command -v "$(PYTHON)" >/dev/null || { echo 'error: there is no $(PYTHON): install Python 3.11 or newer' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Cierzo needs Python 3.11 or newer, and $(PYTHON) is $$("$(PYTHON)" -V 2>&1):" \
			'name another one, as in make chat PYTHON=python3.12' >&2; exit 1; }
	@"$(PYTHON)" -m venv .venv >&2
	@touch $@

NATIVE := $(wildcard native/*.* native/simd/*.h)

# pip with the flags for the native kernels: headers' folder where the interpreter has none, no kernels without any.
define INSTALL
	@if headers=$$(tools/python-headers $(BIN)/python "$(CURDIR)/.venv/headers"); then \
		set -- --config-settings=build-dir=.venv/native; \
		if [ -n "$$headers" ]; then \
			set -- "$$@" --config-settings=cmake.define.Python_INCLUDE_DIR="$$headers"; \
			export CPLUS_INCLUDE_PATH="$$headers:$${headers%/*}"; \
		fi; \
	else \
		echo 'warning: there is no Python.h, so the fast kernels are left out: install python3-dev, then' \
			'`make clean` and this again' >&2; \
		set -- --config-settings=wheel.cmake=false; \
	fi; \
	$(PIP_INSTALL) "$$@" -e '$(1)' >&2
endef

.venv/.run: .venv/.made pyproject.toml constraints.txt $(NATIVE)
	@echo 'building Cierzo and installing it into .venv (about two minutes)' >&2
	$(call INSTALL,.)
	@touch $@

.venv/.serve: .venv/.made pyproject.toml constraints.txt $(NATIVE)
	@echo 'building Cierzo and installing it with its server into .venv (about two minutes)' >&2
	$(call INSTALL,.[serve])
	@touch .venv/.run $@

.venv/.test: .venv/.made pyproject.toml constraints.txt $(NATIVE)
	@echo 'building Cierzo and installing it with the test tools into .venv' >&2
	$(call INSTALL,.[test])
	@touch .venv/.run .venv/.serve $@

clean:
	@rm -rf .venv build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
