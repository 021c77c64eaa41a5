"""The numbers of each logging step, for the report: a run without checkpoints leaves no others."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "token_signals"
"""In the output_dir of a run."""
FILE = "selfdistill_metrics.jsonl"
"""Beside that folder, which then holds one kind of file and can be read as one data set."""


def append_history(folder: Path, run: str, step: int, logs: Mapping[str, Any]) -> None:
    """Add a line. Steps that a resumed run makes again get another line, and the later one counts."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {k: v for k, v in logs.items() if isinstance(v, int | float) and math.isfinite(v)}
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"run": run, "step": step, **numbers}) + "\n")


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The lines of the run that began last, one for each step, in order. A line that was cut off is left out."""
    file = folder / FILE
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # the process was killed while it wrote
            continue
    by_step: dict[int, dict[str, Any]] = {}
    for line in lines:
        if line["run"] == lines[-1]["run"]:
            by_step[line["step"]] = {**by_step.get(line["step"], {}), **line}
    return [by_step[step] for step in sorted(by_step)]
