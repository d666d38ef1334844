PYTHON ?= python
RESULTS = benchmarks/results
TYPED = $(wildcard benchmarks/*.py) $(wildcard experiments/*.py)

.PHONY: test style docs matrix bench

test:
	$(PYTHON) -m pytest -n auto

style:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	MYPYPATH=tests $(PYTHON) -m mypy --follow-imports silent act act_kernels $(TYPED)

docs:
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict  # --quiet would hide warnings from it

matrix:
	.ci/matrix

bench:
	for op in column_moments pair_moments blend_rows gated_mlp rotary add_norm; do \
		$(PYTHON) benchmarks/kernels.py --op $$op --json $(RESULTS)/$$op-cpu.json || exit 1; done
	$(PYTHON) benchmarks/kernels.py --op segment_moments --rows 16384 --channels 768 2048 \
		--json $(RESULTS)/segment_moments-cpu.json
	for model in tiny small medium; do $(PYTHON) benchmarks/overhead.py --model $$model \
		--dtype bfloat16 float32 --threads 1 2 --json $(RESULTS)/overhead-$$model-cpu.json || exit 1; done
	if command -v nvcc > /dev/null; then $(PYTHON) benchmarks/registers.py --json $(RESULTS)/registers.json; fi
	$(PYTHON) benchmarks/accuracy.py --json $(RESULTS)/accuracy-cpu.json
	$(PYTHON) benchmarks/memory.py --json $(RESULTS)/memory-cpu.json
	$(PYTHON) benchmarks/corpus.py --threads 1 2 --memory 10000 1000000 10000000 --json $(RESULTS)/corpus-cpu.json
	$(PYTHON) benchmarks/plan.py --json $(RESULTS)/plan-cpu.json
	$(PYTHON) benchmarks/distributed.py --json $(RESULTS)/distributed-cpu.json
	$(PYTHON) benchmarks/stability.py --json $(RESULTS)/stability-cpu.json
	$(PYTHON) benchmarks/transfer.py --json $(RESULTS)/transfer-cpu.json
	$(PYTHON) benchmarks/experts.py --json $(RESULTS)/experts-cpu.json
	$(PYTHON) benchmarks/families.py --json $(RESULTS)/families-cpu.json
	$(PYTHON) benchmarks/rank.py --json $(RESULTS)/rank-cpu.json
	$(PYTHON) benchmarks/cluster.py --json $(RESULTS)/cluster.json
	PYTHONPATH=.:tests $(PYTHON) -m fuzz.table 500 --json $(RESULTS)/fuzz-cpu.json
	$(PYTHON) benchmarks/table.py
