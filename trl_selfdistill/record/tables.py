"""The teacher's opinion in a few numbers per completion: columns of TRL's completions table, and trackers' traces."""

import json
from collections import deque
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from accelerate.utils import gather_object

from trl_selfdistill.maths import masked_fill_nan
from trl_selfdistill.record.signal_log import Part

PREFIX = "self_distill/"
COLUMNS = ("log_ratio", "student_entropy", "teacher_entropy", "weight", "context_source", "correct")
TABLE = "token_signals"


class CompletionColumns:
    """Columns that go with the rows of TRL's completions table: those of the last `size` rollouts.

    A batch has its rows from its first log line on; the numbers of rollouts that were not trained on yet are `None`.
    """

    def __init__(self, size: int) -> None:
        self._rows: deque[dict[str, Any]] = deque(maxlen=size)
        self._last: dict[str, tuple[Any, list[dict[str, Any]]]] = {}

    def add(self, part: Part, lesson: Any, mode: str) -> None:
        """Take up what the rows of `part` were taught. To be called by every process.

        An evaluation (another `mode`) may come between two parts of one batch.
        """
        known, batch = self._last.get(mode, (None, []))
        if lesson is not known:
            batch = [{} for _ in gather_object([rollout.index for rollout in lesson.rollouts])]
            self._last[mode] = (lesson, batch)
            self._rows.extend(batch)
        for index, row in gather_object(compact(part, lesson)):
            batch[index].update(row)

    def columns(self) -> dict[str, list[Any]]:
        return {PREFIX + name: [row.get(name) for row in self._rows] for name in COLUMNS}


def compact(part: Part, lesson: Any) -> list[tuple[int, dict[str, Any]]]:
    """(global index, `COLUMNS`) of each row of `part`: means over its scored tokens."""
    scores = part.scores
    values = {name: getattr(scores, name) for name in COLUMNS[:3]}
    weight = next(iter(part.metrics.values()), None)
    if weight is not None:
        values["weight"] = weight
    means = {name: masked_fill_nan(v.float(), scores.mask).nanmean(dim=1).tolist() for name, v in values.items()}
    contexts = next((view.contexts for view in lesson.views.values()), [None] * len(lesson.rollouts))
    found = []
    for i, row in enumerate(part.rows.tolist()):
        rollout, context = lesson.rollouts[row], contexts[row]
        numbers = {name: None if mean[i] != mean[i] else mean[i] for name, mean in means.items()}
        source = None if context is None else context.source
        found.append((rollout.index, {**numbers, "context_source": source, "correct": rollout.correct}))
    return found


def report(rows: Sequence[dict[str, Any]], step: int, reporters: Sequence[str]) -> None:
    """Send the recorded completions to those of `reporters` that show texts. To be called by one process.

    trackio gets a trace of each one, with the few numbers as its metadata; wandb gets a table.
    """
    if not rows:
        return
    if "trackio" in reporters:
        trackio: Any = import_module("trackio")  # not among the dependencies: whoever reports to it has it
        traces = [trackio.Trace(messages=messages(row), metadata=summary_of(row)) for row in rows]
        trackio.log({TABLE: traces}, step=step)
    if "wandb" in reporters:
        wandb: Any = import_module("wandb")
        if wandb.run is not None:
            found = [{"prompt": row["prompt"], "completion": row["completion"], **summary_of(row)} for row in rows]
            wandb.log({TABLE: wandb.Table(columns=list(found[0]), data=[list(each.values()) for each in found])})


def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Prompt and completion of a row of the token log as a conversation."""
    try:
        prompt = json.loads(row["prompt"])
    except json.JSONDecodeError:
        prompt = None
    if not isinstance(prompt, list):  # plain text, which may look like JSON
        prompt = [{"role": "user", "content": row["prompt"]}]
    return [*prompt, {"role": "assistant", "content": row["completion"]}]


def summary_of(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the token log in a few numbers: means over its scored tokens."""
    found = {name: row[name] for name in ("step", "group", "reward", "row_advantage", "correct", "context_source")}
    for name in COLUMNS[:4]:
        numbers = [value for value in row[name] or [] if value is not None]
        found[name] = torch.tensor(numbers).mean().item() if numbers else None
    return {**found, "tokens": len(row["tokens"])}
