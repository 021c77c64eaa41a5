"""Peak memory through the benchmarks' own measurement, in a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOKENS, WIDTH, VOCAB = 1024, 576, 49152

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def peak_growth(script: str, *flags: str, child: list) -> float:
    run = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *flags, "--child", json.dumps(child)],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(run.stdout.split()[-1])


def test_frozen_head_needs_one_chunk_of_logits():
    """10 bytes per row and entry of a chunk of 256, plus the hidden gradient twice, plus 20 % for everything else."""
    growth = peak_growth("linear_divergence.py", "--frozen-head", child=["ours", TOKENS, 0.0])
    assert growth < 1.2 * (10 * 256 * VOCAB + 8 * TOKENS * WIDTH)


@pytest.mark.parametrize(
    ("flags", "chunk", "kept"),
    [
        (["--frozen-head"], 4, 4 * 3 * TOKENS * WIDTH),
        (["--frozen-head", "--entropy"], 8, 4 * 5 * TOKENS * WIDTH),
        (["--entropy"], 4, 4 * (VOCAB + TOKENS) * WIDTH),
    ],
    ids=["frozen", "frozen, entropy", "trainable"],
)
def test_linear_logps_needs_one_chunk_of_logits(flags, chunk, kept):
    """Bytes per row and entry of a chunk of 256; gradients by hidden states and their products with the upstream ones,
    or the gradient of the head; 20 % and 8 MB for everything else. All logits in fp32 are 201 MB."""
    growth = peak_growth("linear_logps.py", *flags, child=["ours", TOKENS])
    assert growth < 1.2 * (chunk * 256 * VOCAB + kept) + 8e6
