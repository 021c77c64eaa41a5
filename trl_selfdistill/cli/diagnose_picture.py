"""The picture of a diagnosis: a bar for each context in four panels."""

import math
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from trl_selfdistill.cli.diagnose_facts import Diagnosis
from trl_selfdistill.cli.eval_metrics import Interval

EPISTEMIC, OTHER, STUDENT = "#c2571a", "#4c72b0", "#7f7f7f"
PANELS = (
    ("pass@1", "right answers of the teacher, %", 100.0),
    ("length", "tokens of its completions", 1.0),
    ("epistemic_words", "epistemic words of its completions", 1.0),
)


def draw(diagnosis: Diagnosis, title: str, sentence: str, file: Path) -> None:
    """Accuracy, length, epistemic words and mean u by context, with intervals, as a PNG."""
    found = {name.replace("_", " "): each for name, each in diagnosis.contexts.items()}
    figure = Figure(figsize=(12, 2.6 + 0.75 * len(found)), layout="constrained")
    first, second = figure.subplots(2, 2)
    for axis, (metric, label, scale) in zip((*first, second[0]), PANELS, strict=True):
        bars(axis, {name: each.answers[metric] for name, each in found.items()}, scale=scale)
        axis.set_title(label, fontsize="medium")
        axis.set_xlim(left=0, right=112 if scale == 100 else axis.get_xlim()[1] or 1)
    draw_ratios(second[1], {name: each for name, each in found.items() if name != "none"})
    figure.suptitle(title, fontweight="bold")
    figure.supxlabel("\n".join(textwrap.wrap(sentence, 130)), fontsize="medium", style="italic")
    figure.savefig(file, dpi=150)


def draw_ratios(axis: Any, taught: dict[str, Any]) -> None:
    """Mean u of other tokens, and of epistemic ones where there are any."""
    words = {name: each.log_ratio_epistemic for name, each in taught.items()}
    several = any(not math.isnan(interval.value) for interval in words.values())
    place: dict[str, Any] = {"shift": -0.2, "height": 0.36} if several else {}
    bars(axis, {name: each.log_ratio_other for name, each in taught.items()}, legend="other tokens", **place)
    if several:
        bars(axis, words, shift=0.2, height=0.36, color=EPISTEMIC, legend="epistemic tokens")
        axis.legend(fontsize="small")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.margins(x=0.15)
    axis.set_title("u on the student's tokens, nats: teacher minus student", fontsize="medium")


def bars(
    axis: Any,
    intervals: dict[str, Interval],
    *,
    scale: float = 1.0,
    shift: float = 0.0,
    height: float = 0.7,
    color: str = OTHER,
    legend: str | None = None,
) -> None:
    """Horizontal bars with their intervals and values, the first on top. A NaN has no bar."""
    rows, given = range(len(intervals)), list(intervals.values())
    values = [scale * each.value for each in given]
    spread = [[scale * (each.value - each.low) for each in given], [scale * (each.high - each.value) for each in given]]
    colors = [STUDENT if name == "none" else color for name in intervals]
    errors = {"linewidth": 1, "capsize": 2, "ecolor": "#333333"}
    places = [row + shift for row in rows]
    axis.barh(places, values, height, xerr=spread, color=colors, error_kw=errors, label=legend)
    for place, each, value in zip(places, given, values, strict=True):
        if not math.isnan(value):
            end, side = (each.high, "left") if value >= 0 else (each.low, "right")
            gap = "  " if side == "left" else ""
            text = f"{gap}{value:.0f}" if abs(value) >= 100 or scale == 100 else f"{gap}{value:.2g}"
            axis.text(scale * end, place, text if gap else f"{text}  ", va="center", ha=side, fontsize="small")
    axis.set_yticks(rows, ["none (student)" if name == "none" else name for name in intervals])
    axis.set_ylim(len(intervals) - 0.4, -0.6)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
