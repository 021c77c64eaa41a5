"""The table of a comparison. Plain Python."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = {
    "steps": ("steps", "{:.0f}"),
    "reward": ("reward", "{:.3f}"),
    "eval_before": ("eval before", "{:.3f}"),
    "eval_after": ("eval after", "{:.3f}"),
    "log_ratio": ("mean u", "{:.4f}"),
    "has_teacher": ("with teacher", "{:.2f}"),
    "length": ("length", "{:.1f}"),
    "seconds": ("seconds", "{:.0f}"),
}


def table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """One row per arm, the mean over its finished seeds (± their standard deviation), and a line for what has no row.

    A record has `arm`, `seed`, `status`, `reason` and, where it is finished, `result`.
    """
    names = list(dict.fromkeys(record["arm"] for record in records))
    rows = [["arm", "seeds", *(title for title, _ in COLUMNS.values())]]
    for name in names:
        results = [record["result"] for record in records if record["arm"] == name and record["status"] == "finished"]
        if results:
            cells = [cell([result[key] for result in results], form) for key, (_, form) in COLUMNS.items()]
            rows.append([name, str(len(results)), *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, *(remark(record) for record in records if record["status"] != "finished")]


def cell(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "-"
    if len(known) == 1 or len(set(known)) == 1:
        return form.format(known[0])
    return f"{form.format(statistics.mean(known))} ± {form.format(statistics.stdev(known))}"


def remark(record: Mapping[str, Any]) -> str:
    seed = "" if record["seed"] is None else f", seed {record['seed']}"
    return f"{record['arm']}{seed}: {record['status']}: {record['reason']}"
