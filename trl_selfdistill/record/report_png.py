"""The report's pictures as PNG files, for papers and cards."""

import math
from pathlib import Path
from typing import Any

from trl_selfdistill.record.report import EXTRA
from trl_selfdistill.record.report_data import Run, read_run
from trl_selfdistill.record.report_stats import CELLS, CURVES, LOWEST, StepStats

LINE, LINES = 118, 26
"""Characters of a line and lines, in the picture of the tokens."""
BLUE, ORANGE, GREY = "#2a6fb0", "#c2570c", "#6b7280"


def write_pictures(folders: list[Path], target: Path) -> list[Path]:
    """Write the pictures of each run into the folder `target`; the files.

    Raises `ValueError` for a folder without records, `ImportError` where matplotlib is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(EXTRA.format(name="matplotlib")) from error
    target.mkdir(parents=True, exist_ok=True)
    files = []
    for number, folder in enumerate(folders):
        run = read_run(folder)
        rows = [row for rows in run.steps.values() for row in rows]
        stats = StepStats(rows, max(len(row["tokens"]) for row in rows), run.centre).as_json()
        front = f"{'ab'[number]}_" if len(folders) > 1 else ""
        figures = {
            "tokens": tokens_figure(stats, has_advantage=rows[0]["advantage"] is not None),
            "steps": steps_figure(run),
        }
        if run.asks_teacher:  # the others draw u
            figures |= {"signal": signal_figure(stats), "heatmap": heatmap_figure(run)}
        for name, figure in figures.items():
            files.append(target / f"{front}{name}.png")
            figure.savefig(files[-1], dpi=160, bbox_inches="tight")
    return files


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """A figure of its own, with no window and no global state; its axes (rows, columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure, axes


def signal_figure(stats: dict[str, Any]) -> Any:
    """The density of both policies, and u by position."""
    figure, axes = new_figure(9, 3.6, columns=2)
    grid = [[math.nan] * CELLS for _ in range(CELLS)]
    for at, count in stats["density"]:
        grid[at % CELLS][at // CELLS] = math.log10(count)
    left, right = axes[0]
    box = (LOWEST, 0, LOWEST, 0)
    left.imshow(grid, origin="lower", extent=box, cmap="cividis_r", aspect="equal")
    left.plot([LOWEST, 0], [LOWEST, 0], color=GREY, linewidth=0.8)
    left.set(xlabel="log π_S, nats", ylabel="log π_T, nats", title="Tokens, by log of their number")
    places = [p[0] for p in stats["positions"]]
    means, errors = ([p[i] for p in stats["positions"]] for i in (1, 2))
    right.xaxis.get_major_locator().set_params(integer=True)
    right.axhline(0, color=GREY, linewidth=0.8)
    right.errorbar(places, means, yerr=errors, color=BLUE, marker="o", markersize=3, linewidth=1.2)
    right.set(xlabel="position of the token", ylabel="mean u, nats", title="u by position")
    return figure


def tokens_figure(stats: dict[str, Any], *, has_advantage: bool) -> Any:
    """The tokens that gain most, and those that lose most."""
    figure, axes = new_figure(9, 3.6, columns=2)
    what = "sum of A_t − A" if has_advantage else "sum of u"
    for ax, name, colour in ((axes[0][0], "most", BLUE), (axes[0][1], "least", ORANGE)):
        found = stats[name][::-1]
        ax.barh(range(len(found)), [token["sum"] for token in found], color=colour)
        ax.set_yticks(range(len(found)), [f'"{plain(token["token"])}"' for token in found], family="DejaVu Sans Mono")
        ax.set(xlabel=what, title="most reinforced" if name == "most" else "most suppressed")
        if not found:
            ax.text(0.5, 0.5, "none", ha="center", transform=ax.transAxes, color=GREY)
            ax.set_xticks([])
    return figure


def steps_figure(run: Run) -> Any:
    """The numbers over steps, those that were logged."""
    curves = [(t, [n for n in names if any(n in line for line in run.history)]) for t, names in CURVES]
    curves = [(title, names) for title, names in curves if names]
    figure, axes = new_figure(9, 2.2 * math.ceil(len(curves) / 3) + 0.2, columns=3, rows=math.ceil(len(curves) / 3))
    for ax in axes.flat[len(curves) :]:
        ax.set_visible(False)
    for ax, (title, names) in zip(axes.flat, curves, strict=False):
        for name, colour, width in zip(names, (BLUE, ORANGE), (2.6, 1.2), strict=False):
            points = [(line["step"], line[name]) for line in run.history if name in line]
            ax.plot(*zip(*points, strict=True), color=colour, label=name.rpartition("/")[2], linewidth=width)
        ax.set_title(title, fontsize=9)
        if len(names) > 1:
            ax.legend(fontsize=7, frameon=False)
    return figure


def heatmap_figure(run: Run) -> Any:
    """Completions of the last recorded step, their tokens coloured by u: blue where the teacher finds them likelier."""
    from matplotlib.patches import Rectangle

    rows = [row for row in next(reversed(run.steps.values())) if row["log_ratio"] is not None]
    lines = [line for row in rows for line in [*token_lines(row), []]][:LINES]
    away = sorted(abs(u) for line in lines for _, u in line if u is not None) or [1.0]
    full = max(0.01, away[int(len(away) * 0.98)])
    figure, axes = new_figure(9, 0.25 * len(lines) + 0.3)
    ax = axes[0][0]
    ax.set(xlim=(0, LINE), ylim=(-len(lines), 1), title=f"u from −{full:.1f} (orange) to +{full:.1f} nats (blue)")
    ax.title.set_fontsize(9)
    ax.axis("off")
    for number, line in enumerate(lines):
        at = 0
        for token, u in line:
            text, share = plain(token), min(1.0, abs(u or 0.0) / full)
            colour = BLUE if (u or 0.0) > 0 else ORANGE
            ax.add_patch(Rectangle((at, -number - 0.42), len(text), 0.84, color=colour, alpha=0.6 * share, linewidth=0))
            shade = "black" if u is not None else GREY
            ax.text(at, -number, text, family="DejaVu Sans Mono", fontsize=9, va="center_baseline", color=shade)
            at += len(text)
    return figure


def token_lines(row: dict[str, Any]) -> list[list[tuple[str, float | None]]]:
    """(token, u) of a completion, in lines of at most `LINE` characters where no token is longer."""
    lines, used = [[]], 0
    for token, u in zip(row["tokens"], row["log_ratio"], strict=True):
        width = len(plain(token))
        if lines[-1] and used + width > LINE:
            lines, used = [*lines, []], 0
        lines[-1].append((token, u))
        used += width
    return lines


def plain(token: str) -> str:
    """A token in one line, with signs for what cannot be seen. `$` would begin a formula."""
    shown = token.replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$")
    return "".join(c if c.isprintable() else "·" for c in shown)
