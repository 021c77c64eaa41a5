"""The results of an evaluation as JSON and as a table."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trl_selfdistill.cli.eval_metrics import Interval, shown
from trl_selfdistill.cli.eval_store import Record, write_whole
from trl_selfdistill.record.card import versions

UNITS = {
    "length": "length, tokens",
    "truncated": "cut off at the limit",
    "epistemic_substrings": "epistemic words a completion, as published",
    "epistemic_words": "epistemic words a completion, whole words",
    "epistemic_rate": "epistemic words per 1000 tokens",
}
"""What a metric is called in the table, where its name does not tell."""


@dataclass(frozen=True)
class Report:
    """All that an evaluation found."""

    settings: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Interval]]
    """By thinking mode and name."""
    records: Sequence[Record]
    notes: Sequence[str]
    seconds: float
    """Of the last session alone, where an evaluation was stopped and went on."""

    def of(self, mode: str) -> list[Record]:
        return [record for record in self.records if record["thinking"] == mode]

    def not_assessed(self, mode: str) -> int:
        """Problems that count for no pass@k: their reward did not assess a completion."""
        return len({record["problem"] for record in self.of(mode) if record["correct"] is None})


def log_entry(report: Report) -> dict[str, float]:
    """The results as an entry of a trainer's log history, from which a model card takes its scores.

    `trainer.state.log_history.append(entry)` before `trainer.create_model_card()`.
    """
    entry = {}
    for mode, metrics in report.metrics.items():
        prefix = "eval_" if len(report.metrics) == 1 else f"eval_thinking_{mode}/"
        entry[f"{prefix}self_distill/correct"] = metrics["pass@1"].value
        entry[f"{prefix}completions/mean_length"] = metrics["length"].value
        entry[f"{prefix}completions/clipped_ratio"] = metrics["truncated"].value
    return {name: value for name, value in entry.items() if not math.isnan(value)}


def as_json(report: Report) -> dict[str, Any]:
    """What `results.json` holds. A number that is not there is null."""
    results = {
        mode: {
            "samples": len(report.of(mode)),
            "problems_not_assessed": report.not_assessed(mode),
            "metrics": {name: numbers(interval) for name, interval in metrics.items()},
        }
        for mode, metrics in report.metrics.items()
    }
    return {
        "settings": dict(report.settings),
        "versions": dict(versions()),
        "seconds": round(report.seconds, 1),
        "notes": list(report.notes),
        "results": results,
        "log_entry": log_entry(report),
    }


def numbers(interval: Interval) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in asdict(interval).items()}


def write_report(report: Report, file: Path) -> None:
    write_whole(file, json.dumps(as_json(report), indent=1, allow_nan=False) + "\n")


def make_table(report: Report) -> Table:
    """A row per metric, a column per thinking mode."""
    settings = report.settings
    title = (
        f"{Path(settings['model']).name} on {settings['dataset']} ({settings['split']}): {settings['problems']} "
        f"problems x {settings['n']} samples"
    )
    drawn = {name: settings[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "seed")}
    caption = ", ".join(f"{name} {value}" for name, value in drawn.items())
    table = Table(title=title, caption=f"{caption}; \\[95 % bootstrap intervals over problems]")
    table.add_column("")
    for mode in report.metrics:
        table.add_column("all samples" if mode == "default" else f"thinking {mode}", justify="right")
    for name in next(iter(report.metrics.values())):
        values = [shown(name, metrics[name]).replace("[", "\\[") for metrics in report.metrics.values()]
        table.add_row(UNITS.get(name, name), *values)
    if any(map(report.not_assessed, report.metrics)):
        table.add_row("problems not assessed", *(str(report.not_assessed(mode)) for mode in report.metrics))
    return table


def print_report(report: Report, folder: Path) -> None:
    console = Console()
    console.print(make_table(report))
    for note in report.notes:
        console.print(note, markup=False)
    console.print(f"{report.seconds:.0f} s. samples.jsonl and results.json are in {folder}", markup=False)
