"""A progress bar with one short line a step, and the curves of a run as a picture."""

from pathlib import Path
from typing import Any

import matplotlib
from tqdm.auto import tqdm
from transformers import TrainerCallback

matplotlib.use("Agg")  # a file, no window
import matplotlib.pyplot as plt

COLUMNS = {
    "reward": "reward",
    "correct": "self_distill/correct",
    "taught": "self_distill/has_teacher",
    "mean u": "self_distill/log_ratio",
    "clipped": "rlrt/clipped",
}


class ProgressLines(TrainerCallback):
    """One line a log entry above the bar. `taught` is the share of rollouts with a teacher, u the log-ratio in nats."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)
        self._tokens = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "reward" not in logs:
            return
        speed = (logs["num_tokens"] - self._tokens) / (logs["step_time"] * args.logging_steps)
        self._tokens = logs["num_tokens"]
        values = [f"{name} {_number(value_of(logs, key))}" for name, key in COLUMNS.items()]
        self._bar.write("  ".join([f"step {state.global_step:3d}", *values, f"{speed:5.0f} tokens/s"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()


def value_of(logs: dict[str, Any], key: str) -> float | None:
    """A logged value; the two clip shares of the RLRT weights count as one."""
    if key != "rlrt/clipped":
        return logs.get(key)
    shares = [logs.get(f"rlrt/clipped_{side}") for side in ("low", "high")]
    return None if shares[0] is None or shares[1] is None else shares[0] + shares[1]


def _number(value: float | None) -> str:
    return "    -" if value is None else f"{value:5.2f}"


def plot_curves(history: list[dict[str, Any]], path: Path, title: str) -> None:
    """Reward, log-ratio and entropies by step, from `trainer.state.log_history`."""
    entries = [entry for entry in history if "reward" in entry]
    panels = {
        "mean reward": ["reward", "self_distill/has_teacher"],
        "log-ratio u (nats)": ["self_distill/log_ratio"],
        "entropy (nats)": ["self_distill/student_entropy", "self_distill/teacher_entropy"],
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3), layout="constrained")
    for axis, (label, keys) in zip(axes, panels.items(), strict=True):
        for key in keys:
            points = [(e["step"], e[key]) for e in entries if e.get(key) is not None]
            axis.plot(*zip(*points, strict=True), marker=".", label=key.rsplit("/")[-1].replace("_", " "))
        axis.set(xlabel="step", ylabel=label)
        axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)
