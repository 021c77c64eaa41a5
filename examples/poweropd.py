"""Train with PowerOPD (https://huggingface.co/papers/2606.17199). What it needs and what to watch: docs/poweropd.md.

On a CPU, offline (first `python examples/smollm2.py`):

    python examples/poweropd.py --config recipes/smollm2/poweropd.yaml
"""

from trl_selfdistill import PowerOPDTrainer
from trl_selfdistill.cli.train import run

if __name__ == "__main__":
    run(PowerOPDTrainer)
