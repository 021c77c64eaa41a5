"""What a run recorded, as the JSON that the report draws."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet

from trl_selfdistill.record.history import FILE, FOLDER, read_history
from trl_selfdistill.record.report_stats import CURVES, StepStats, rounded

BUDGET = 110_000
"""Tokens that a report may hold one by one, over all runs: some 4 MB. Statistics are over all recorded tokens."""
SCALE = 1000
"""Numbers of tokens are whole thousandths."""
FULL = 0.98
"""Share of the tokens below which a colour is not yet at its strongest."""
LISTS = {"s": "student_logps", "u": "log_ratio", "hs": "student_entropy", "ht": "teacher_entropy", "w": "weight"}
TEXTS = {"p": "prompt", "c": "context", "tp": "teacher_prompt", "src": "context_source"}


@dataclass(frozen=True)
class Run:
    """A run's folder: the recorded completions of each logging step, and the numbers over steps."""

    name: str
    about: dict[str, str]
    steps: dict[int, list[dict[str, Any]]]
    history: list[dict[str, Any]]

    @property
    def centre(self) -> float:
        """What the column `weight` is where the teacher has no opinion: a factor is 1, anything else 0."""
        return 1.0 if self.about.get("weight", "").endswith("weight") else 0.0

    @property
    def asks_teacher(self) -> bool:
        """Whether there was a teacher whose opinion could be shown."""
        return self.about.get("views") != ""


def read_run(folder: Path) -> Run:
    """What was recorded in `folder`, of the run that began last. Evaluation is left out.

    Raises `ValueError` where nothing was.
    """
    history = read_history(folder)
    steps, about = {}, {}
    for file in sorted((folder / FOLDER).glob("step_*.parquet")):
        table = pyarrow.parquet.read_table(file)
        told = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        if history and told.get("run") == history[-1]["run"]:  # others lie there from an earlier run
            steps[int(file.stem.removeprefix("step_"))], about = table.to_pylist(), told
    if not steps:
        raise ValueError(
            f"{folder} has no recorded completions of its last run ({FOLDER}/step_*.parquet and {FILE}). Name "
            "the output_dir of a run that was made with log_token_signals above 0."
        )
    return Run(folder.resolve().name, about, steps, history)


class Table:
    """Values that occur again and again, as their numbers in a list."""

    def __init__(self) -> None:
        self.values: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, value: str | None) -> int | None:
        if value is None:
            return None
        if value not in self._numbers:
            self._numbers[value] = len(self.values)
            self.values.append(value)
        return self._numbers[value]


def report_data(runs: list[Run]) -> dict[str, Any]:
    """All that the page draws, as JSON values."""
    texts, tokens = Table(), Table()
    share = BUDGET // len(runs)
    made = [_run(run, texts, tokens, share) for run in runs]
    return {
        "runs": made,
        "texts": texts.values,
        "tokens": tokens.values,
        "scale": SCALE,
        "curves": CURVES,
        "scales": scales(made),
    }


def _run(run: Run, texts: Table, tokens: Table, budget: int) -> dict[str, Any]:
    shown = fitting(run.steps, budget)
    longest = max((len(row["tokens"]) for rows in run.steps.values() for row in rows), default=1)
    stats = {step: StepStats(rows, longest, run.centre) for step, rows in run.steps.items()}
    whole = StepStats([row for rows in run.steps.values() for row in rows], longest, run.centre)
    return {
        "name": run.name,
        "trainer": run.about.get("trainer", ""),
        "weight": run.about.get("weight", ""),
        "centre": run.centre,
        "teacher": run.asks_teacher,
        "history": run.history,
        "recorded": sum(map(len, run.steps.values())),
        "shown": sum(map(len, shown.values())),
        "all": whole.as_json(),
        "steps": [
            {
                "step": step,
                "recorded": len(run.steps[step]),
                "stats": stats[step].as_json(),
                "rows": [_completion(row, texts, tokens) for row in shown[step]],
            }
            for step in run.steps
        ],
    }


def _completion(row: dict[str, Any], texts: Table, tokens: Table) -> dict[str, Any]:
    plain = row["row_advantage"]
    advantage = row["advantage"]
    added = None if advantage is None or plain is None else [value - plain for value in advantage]
    return {
        "i": row["index"],
        "g": row["group"],
        "ok": row["correct"],
        "r": rounded(row["reward"]),
        "A": rounded(plain),
        "tok": [tokens.number(token) for token in row["tokens"]],
        **{short: texts.number(row[name]) for short, name in TEXTS.items()},
        **{short: thousandths(row[name]) for short, name in LISTS.items()},
        "d": thousandths(added),
        "v": [
            {
                "n": view["name"],
                **{short: texts.number(view[name]) for short, name in TEXTS.items() if name in view},
                "t": thousandths(view["teacher_logps"]),
            }
            for view in row["views"]
        ],
    }


def scales(runs: list[dict[str, Any]]) -> dict[str, float]:
    """For each number of a token the distance from its centre that `FULL` of the shown tokens stay below.

    Numbers that no token has are left out.
    """
    found = {}
    for key in (*LISTS, "d"):
        away = sorted(
            abs(value / SCALE - (run["centre"] if key == "w" else 0.0))
            for run in runs
            for step in run["steps"]
            for row in step["rows"]
            for value in row[key] or []
            if value is not None
        )
        if away:
            found[key] = round(away[int(len(away) * FULL)], 4)
    return found


def thousandths(values: Iterable[float | None] | None) -> list[int | None] | None:
    """Numbers as whole thousandths, within what a token can have: -inf is a log-probability, too."""
    if values is None:
        return None
    made = [None if v is None or v != v else round(max(-99.0, min(99.0, v)) * SCALE) for v in values]
    return made if any(value is not None for value in made) else None


def fitting(steps: dict[int, list[dict[str, Any]]], budget: int) -> dict[int, list[dict[str, Any]]]:
    """As many completions of each step as hold `budget` tokens in all; at least one of each step, from the front.

    Steps in the middle go first where even that is too much. The first and the last step stay.
    """
    most = max(map(len, steps.values()))
    for count in range(most, 0, -1):
        shown = {step: rows[:: max(1, -(-len(rows) // count))] for step, rows in steps.items()}
        if size(shown) <= budget:
            return shown
    every = 2
    while every < 2 * len(shown) and size(shown) > budget:
        ends = (next(iter(steps)), next(reversed(steps)))
        shown = {s: rows if i % every == 0 or s in ends else [] for i, (s, rows) in enumerate(shown.items())}
        every *= 2
    return shown


def size(steps: dict[int, list[dict[str, Any]]]) -> int:
    return sum(len(row["tokens"]) for rows in steps.values() for row in rows)


def as_script(data: Any) -> str:
    """JSON for the inside of a `<script>` element: plain ASCII, without a character that HTML reads."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
