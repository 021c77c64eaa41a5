"""What `trl_selfdistill.cli.train` does in a launched process, and how the run was really distributed, as JSON.

A test puts this module in the place of that one (`launch.TRAIN`): Accelerate shards on a CPU only with a patch.
"""

import json
import os
import sys
from pathlib import Path

from run_trainer import allow_fsdp_on_cpu, sharding

from trl_selfdistill import RLRTTrainer
from trl_selfdistill.cli.arguments import parse, read_command_line
from trl_selfdistill.cli.train import build


def main() -> None:
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        allow_fsdp_on_cpu()
    line = read_command_line(sys.argv[2:], RLRTTrainer.config_class)
    trainer = build(RLRTTrainer, parse(line, RLRTTrainer.config_class))
    trainer.train()
    weights = {type(module).__name__ for module in trainer.model.modules()}
    seen = {
        "wrapper": type(trainer.model_wrapped).__name__,
        "processes": trainer.accelerator.num_processes,
        "mixed_precision": trainer.accelerator.mixed_precision,
        "linear4bit": "Linear4bit" in weights,
        "steps": trainer.state.global_step,
        **sharding(trainer),
    }
    rank = trainer.accelerator.process_index
    Path(f"{trainer.args.output_dir}-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
