"""Train with SDPO (https://huggingface.co/papers/2601.20802). What it needs and what to watch: docs/sdpo.md.

On a CPU, offline (first `python examples/smollm2.py`):

    python examples/sdpo.py --config recipes/smollm2/sdpo.yaml
"""

from trl_selfdistill import SDPOTrainer
from trl_selfdistill.cli.train import run

if __name__ == "__main__":
    run(SDPOTrainer)
