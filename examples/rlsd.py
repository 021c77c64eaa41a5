"""Train with RLSD (https://huggingface.co/papers/2604.03128). What it needs and what to watch: docs/rlsd.md.

On a CPU, offline (first `python examples/smollm2.py`):

    python examples/rlsd.py --config recipes/smollm2/rlsd.yaml
"""

from trl_selfdistill import RLSDTrainer
from trl_selfdistill.cli.train import run

if __name__ == "__main__":
    run(RLSDTrainer)
