"""Peak memory through the benchmark's own measurement, in a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_frozen_head_needs_one_chunk_of_logits():
    """10 bytes per row and entry of a chunk of 256, plus the hidden gradient twice, plus 20 % for everything else."""
    tokens, width, vocab = 1024, 576, 49152
    run = subprocess.run(
        [
            sys.executable,
            "benchmarks/linear_divergence.py",
            "--frozen-head",
            "--child",
            json.dumps(["ours", tokens, 0.0]),
        ],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(run.stdout.split()[-1]) < 1.2 * (10 * 256 * vocab + 8 * tokens * width)
