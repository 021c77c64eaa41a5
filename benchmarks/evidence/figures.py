"""One picture a task: the curves of all methods with their bands."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file, no window
import matplotlib.pyplot as plt

from evidence.analysis import band, steps_of
from evidence.plan import MAIN
from evidence.raw import Result

PANELS = {"pass1": "pass@1", "pass8": "pass@8", "routes": "distinct right routes of 16 samples"}


def draw(methods: dict[str, list[Result]], path: Path, title: str) -> None:
    """Mean curves of the main methods, 95 % bands over worlds and problems. Nothing where there is nothing."""
    shown = [name for name in MAIN if name in methods]
    if not shown:
        return
    figure, axes = plt.subplots(1, len(PANELS), figsize=(4.2 * len(PANELS), 3.4), layout="constrained")
    for axis, (metric, label) in zip(axes, PANELS.items(), strict=True):
        for name in shown:
            steps = steps_of(methods[name][0])
            line, (low, high) = band(methods[name], metric)
            axis.plot(steps, line, marker=".", label=f"{name} ({len(methods[name])})")
            axis.fill_between(steps, low, high, alpha=0.2, linewidth=0)
        axis.set(xlabel="step", title=label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.suptitle(f"{title}: held-out problems, mean and 95 % band over worlds and problems")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)
