"""Train with OPSA (https://huggingface.co/papers/2608.31046). What it needs and what to watch: docs/opsa.md.

On a CPU, offline (first `python examples/smollm2.py`):

    python examples/opsa.py --config recipes/smollm2/opsa.yaml
"""

from trl_selfdistill import OPSATrainer
from trl_selfdistill.cli.train import run

if __name__ == "__main__":
    run(OPSATrainer)
