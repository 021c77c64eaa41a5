"""The curves of a run as a picture."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a file, no window
import matplotlib.pyplot as plt


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
