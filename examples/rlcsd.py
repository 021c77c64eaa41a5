"""Train with RLCSD (https://huggingface.co/papers/2606.11709). What it needs and what to watch: docs/rlcsd.md.

On a CPU, offline (first `python examples/smollm2.py`):

    python examples/rlcsd.py --config recipes/smollm2/rlcsd.yaml
"""

from trl_selfdistill import RLCSDTrainer
from trl_selfdistill.cli.train import run

if __name__ == "__main__":
    run(RLCSDTrainer)
