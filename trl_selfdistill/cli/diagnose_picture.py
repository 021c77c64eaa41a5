"""The picture of a diagnosis: a bar for each context in four panels."""

import math
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from trl_selfdistill.cli.diagnose_facts import Diagnosis
from trl_selfdistill.cli.eval_metrics import Interval

EPISTEMIC, OTHER, STUDENT = "#c2571a", "#4c72b0", "#7f7f7f"


def draw(diagnosis: Diagnosis, title: str, sentence: str, file: Path) -> None:
    """Accuracy, length, epistemic words and mean u by context, with intervals, as a PNG."""
    names = list(diagnosis.contexts)
    figure = Figure(figsize=(11, 2.4 + 0.75 * len(names)), layout="constrained")
    panels: Any = figure.subplots(2, 2)
    found = list(diagnosis.contexts.values())
    labels = [("student's own" if name == "none" else name.replace("_", " ")) for name in names]
    for axis, metric, label, scale in (
        (panels[0][0], "pass@1", "right answers, %", 100.0),
        (panels[0][1], "length", "tokens a completion", 1.0),
        (panels[1][0], "epistemic_words", "epistemic words a completion", 1.0),
    ):
        colors = [STUDENT if name == "none" else OTHER for name in names]
        bars(axis, labels, [each.answers[metric] for each in found], scale, colors)
        axis.set(title=label)
    axis = panels[1][1]
    offset = 0.2
    taught = [(label, each) for label, name, each in zip(labels, names, found, strict=True) if name != "none"]
    own = [label for label, _ in taught]
    other = [each.log_ratio_other for _, each in taught]
    words = [each.log_ratio_epistemic for _, each in taught]
    bars(axis, own, other, 1.0, [OTHER] * len(own), shift=-offset, height=0.36, name="other tokens")
    if any(not math.isnan(interval.value) for interval in words):
        bars(axis, own, words, 1.0, [EPISTEMIC] * len(own), shift=offset, height=0.36, name="epistemic tokens")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(title="u of the student's tokens, nats (teacher minus student)")
    axis.legend(fontsize="small")
    figure.suptitle(title, fontweight="bold")
    figure.supxlabel("\n".join(textwrap.wrap(sentence, 120)), fontsize="medium")
    figure.savefig(file, dpi=150)


def bars(
    axis: Any,
    labels: list[str],
    intervals: list[Interval],
    scale: float,
    colors: list[str],
    *,
    shift: float = 0.0,
    height: float = 0.7,
    name: str | None = None,
) -> None:
    """Horizontal bars with their intervals, the first on top. A NaN has no bar."""
    places = [row + shift for row in range(len(labels))]
    values = [scale * each.value for each in intervals]
    spread = [
        [scale * (each.value - each.low) for each in intervals],
        [scale * (each.high - each.value) for each in intervals],
    ]
    axis.barh(places, values, height, xerr=spread, color=colors, error_kw={"linewidth": 1, "capsize": 2}, label=name)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
