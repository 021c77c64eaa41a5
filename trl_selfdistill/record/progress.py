"""One short line per logging step, in place of a dictionary of all metrics."""

from typing import Any

from transformers import TrainerCallback

COLUMNS = {
    "loss": "loss",
    "reward": "reward",
    "self_distill/correct": "correct",
    "self_distill/has_teacher": "taught",
    "self_distill/log_ratio": "log-ratio",
    "self_distill/divergence": "divergence",
    "opsd/divergence": "divergence",
    "antisd/gate": "gate",
    "step_time": "s/step",
}
"""What is shown, by its key in the logs. `taught` is the share of rollouts with a teacher."""


class ProgressLines(TrainerCallback):
    """Prints a line per log entry of the training: the step, and those of `COLUMNS` that were logged."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        line = progress_line(logs or {}, state.global_step, state.max_steps)
        if line and state.is_world_process_zero:
            print(line, flush=True)


def progress_line(logs: dict[str, Any], step: int, max_steps: int) -> str:
    """The line of one log entry; blank for an evaluation's and the summary at the end, which have no `reward`."""
    if "reward" not in logs:
        return ""
    values = [f"{name} {number(logs[key])}" for key, name in COLUMNS.items() if key in logs]
    return "  ".join([f"step {step:{len(str(max_steps))}d}/{max_steps}", *values])


def number(value: float | None) -> str:
    """Three digits that matter, with an exponent where they lie far from the point; "-" for a value that is not."""
    return f"{'-':>9}" if value is None or value != value else f"{value:9.3g}"
