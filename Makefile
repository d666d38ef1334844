PYTHON ?= python

.PHONY: test style bench

test:
	$(PYTHON) -m pytest

style:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench:
	$(PYTHON) benchmarks/kernels.py --op column_moments --json benchmarks/results/column_moments-cpu.json
	$(PYTHON) benchmarks/kernels.py --op pair_moments --json benchmarks/results/pair_moments-cpu.json
	$(PYTHON) benchmarks/kernels.py --op blend_rows --json benchmarks/results/blend_rows-cpu.json
	$(PYTHON) benchmarks/accuracy.py --json benchmarks/results/accuracy-cpu.json
	$(PYTHON) benchmarks/memory.py --json benchmarks/results/memory-cpu.json
