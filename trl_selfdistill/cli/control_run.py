"""One arm of a comparison, in a process of its own: evaluate, train, evaluate, and write down what came out."""

import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trl_selfdistill
from trl_selfdistill.cli.arguments import CommandLine, parse, read_command_line
from trl_selfdistill.cli.commands import ALGORITHMS
from trl_selfdistill.cli.errors import guarded
from trl_selfdistill.cli.launch import is_launched, launch, launch_arguments, needs_launcher
from trl_selfdistill.cli.train import build, see_working_directory, train
from trl_selfdistill.trainer.checkpoint import write_json

MODULE = "trl_selfdistill.cli.control_run"
RESULT = "control_result.json"
"""In the folder of an arm, once it has finished."""
_COLUMNS = {
    "reward": "reward",
    "log_ratio": "self_distill/log_ratio",
    "has_teacher": "self_distill/has_teacher",
    "length": "completions/mean_length",
}


def main(argv: Sequence[str]) -> int:
    """`python -m trl_selfdistill.cli.control_run FOLDER rlrt ...`. The exit status."""
    folder, command, *options = argv
    return guarded(lambda: start(Path(folder), command, options))


def start(folder: Path, command: str, options: list[str]) -> int:
    """Run the arm here, or in the processes that Accelerate starts."""
    see_working_directory()
    trainer_class: Any = getattr(trl_selfdistill, ALGORITHMS[command])
    line = read_command_line(options, trainer_class.config_class)
    if is_launched() or not (line.launch or line.accelerate_config or needs_launcher()):
        return run_arm(folder, trainer_class, line)
    return launch(str(folder), [command, *options], launch_arguments(line), module=MODULE)


def run_arm(folder: Path, trainer_class: Any, line: CommandLine) -> int:
    """Train between two evaluations, where there is an evaluation set. The exit status."""
    trainer = build(trainer_class, parse(line, trainer_class.config_class))
    evaluates, resumed = trainer.eval_dataset is not None, trainer.args.resume_from_checkpoint is not None
    before = trainer.evaluate() if evaluates else {}
    began = time.monotonic()

    def finish() -> None:
        seconds = None if resumed else time.monotonic() - began
        result = {"steps": trainer.state.global_step, "seconds": seconds, **at_the_end(trainer.state.log_history)}
        after = trainer.evaluate() if evaluates else {}
        result |= {"eval_before": eval_reward(before), "eval_after": eval_reward(after)}
        if trainer.accelerator.is_main_process:
            write_json(folder / RESULT, result)

    return train(trainer, None, finish)


def at_the_end(history: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means over the last quarter of the log lines of training, one line at least; `None` for what was not logged."""
    lines = [entry for entry in history if "loss" in entry]
    last = lines[-max(1, math.ceil(len(lines) / 4)) :]
    return {name: mean([entry.get(key) for entry in last]) for name, key in _COLUMNS.items()}


def eval_reward(metrics: Mapping[str, float]) -> float | None:
    """The mean reward of an evaluation; of several sets, the mean of theirs."""
    return mean([value for name, value in metrics.items() if re.fullmatch(r"eval_(.+_)?reward", name)])


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
