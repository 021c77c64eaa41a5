"""What the teacher said about each token of a few completions of the last batch, kept for `log_token_signals`."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from accelerate.utils import gather_object
from torch import Tensor

from trl_selfdistill.context.rollout import Context, Rollout
from trl_selfdistill.record.first_prompt import teacher_prompt
from trl_selfdistill.record.pieces import Pieces, starts
from trl_selfdistill.record.signal_log import Part

ALL = -1
_LISTS = ("student_logps", "teacher_logps", "log_ratio", "student_entropy", "teacher_entropy", "weight", "advantage")
_TEXT, _NUMBERS = pyarrow.string(), pyarrow.list_(pyarrow.float32())
_VIEW = [("name", _TEXT), ("context", _TEXT), ("context_source", _TEXT), ("teacher_prompt", _TEXT)]
SCHEMA = pyarrow.schema(
    [
        ("step", pyarrow.int64()),
        ("index", pyarrow.int64()),
        ("group", pyarrow.int64()),
        ("prompt", _TEXT),
        ("completion", _TEXT),
        ("context", _TEXT),
        ("context_source", _TEXT),
        ("teacher_prompt", _TEXT),
        ("correct", pyarrow.bool_()),
        ("reward", pyarrow.float64()),
        ("row_advantage", pyarrow.float64()),
        ("tokens", pyarrow.list_(_TEXT)),
        ("offsets", pyarrow.list_(pyarrow.int64())),
        *((name, _NUMBERS) for name in _LISTS),
        ("views", pyarrow.list_(pyarrow.struct([*_VIEW, ("teacher_logps", _NUMBERS), ("teacher_entropy", _NUMBERS)]))),
    ]
)
"""One row per completion; lists have one entry per token, `null` where a number does not exist."""


class TokenLog:
    """The chosen completions of the last scored batch of this process, until they are written.

    Args:
        tokenizer: that of the policy.
        count: completions to keep over all processes; `ALL` keeps the batch, 0 nothing.
    """

    def __init__(self, tokenizer: Any, count: int) -> None:
        self._tokenizer = tokenizer
        self._pieces = Pieces(tokenizer)
        self._count = count
        self._kept: tuple[Part, Any] | None = None

    def keep(self, part: Part, lesson: Any) -> None:
        """Replace what was kept by the first of `part` in the order of `place`; `lesson` is what it was taught with."""
        if not self._count:
            return
        rollouts = lesson.rollouts
        rows = part.rows.tolist()
        order = sorted(range(len(rows)), key=lambda i: place(rollouts[rows[i]]))
        self._kept = (part.select(order if self._count == ALL else order[: self._count]), lesson)

    def take(self) -> list[dict[str, Any]]:
        """The kept rows of all processes by `SCHEMA`, in the order of the batch, once. Called by every process."""
        if not self._count:
            return []
        kept, self._kept = self._kept, None
        rollouts = [kept[1].rollouts[row] for row in kept[0].rows.tolist()] if kept else []
        places = [place(rollout) for rollout in rollouts]
        # Places first, then only the rows that are wanted: whole rows of many processes would be much to send.
        wanted = sorted(gather_object(places))
        chosen = set(wanted if self._count == ALL else wanted[: self._count])
        local = [self._row(*kept, i) for i, own in enumerate(places) if own in chosen] if kept else []
        return sorted(gather_object(local), key=lambda row: row["index"])

    def _row(self, part: Part, lesson: Any, i: int) -> dict[str, Any]:
        scores, row, valid = part.scores, int(part.rows[i]), part.mask[i]
        rollout: Rollout = lesson.rollouts[row]
        tokens = self._pieces.of(part.ids[i][valid].tolist())
        numbers = {name: getattr(scores, name) for name in _LISTS[:5]}
        numbers["weight"] = next(iter(part.metrics.values()), None)
        scored = scores.mask[i][valid]
        first, *others = [*lesson.views] or [None]
        return {
            "step": rollout.step,
            "index": rollout.index,
            "group": rollout.index // rollout.group_size,
            "prompt": rollout.prompt if isinstance(rollout.prompt, str) else json.dumps(rollout.prompt, default=str),
            "completion": rollout.completion,
            **self._shown(lesson, first, row),
            "correct": rollout.correct,
            "reward": rollout.reward,
            "row_advantage": None if part.row_advantages is None else float(part.row_advantages[i]),
            "tokens": tokens,
            "offsets": starts(tokens),
            **{name: _numbers(values, i, valid, scored) for name, values in numbers.items()},
            "advantage": None if part.advantages is None else part.advantages[i][valid].tolist(),
            "views": [{"name": name, **self._shown(lesson, name, row), **_view(part, name, i)} for name in others],
        }

    def _shown(self, lesson: Any, view: str | None, row: int) -> dict[str, Any]:
        """What the teacher was shown: the privileged text, its source, and the whole prompt with special tokens."""
        context: Context | None = None if view is None else lesson.views[view].contexts[row]
        return {
            "context": None if context is None else context.text,
            "context_source": None if context is None else context.source,
            "teacher_prompt": None
            if context is None
            else teacher_prompt(self._tokenizer, lesson.views[view].prompts, row),
        }


def place(rollout: Rollout) -> tuple[int, float]:
    """Where a completion stands in the order in which they are kept: first one of each group, then another of each.

    The order is drawn with the group's name in this run: alike for any number of processes, and after a restart.
    """
    draw = random.Random(f"{rollout.seed}/record")
    order = list(range(rollout.group_size))
    draw.shuffle(order)
    return order.index(rollout.index % rollout.group_size), draw.random()


def write_rows(folder: Path, name: str, rows: list[dict[str, Any]], about: dict[str, str]) -> None:
    """Write `rows` to `folder`/`name`.parquet. `about` becomes the file's metadata. To be called by one process."""
    file = folder / f"{name.replace('/', '-')}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows, schema=SCHEMA.with_metadata(about))
    pyarrow.parquet.write_table(table, file, compression="zstd")


def _view(part: Part, name: str, i: int) -> dict[str, list[float | None] | None]:
    scores, valid = part.scores.views[name], part.mask[i]
    seen = scores.mask[i][valid]
    values = {"teacher_logps": scores.logps, "teacher_entropy": scores.entropy}
    return {column: _numbers(tensor, i, valid, seen) for column, tensor in values.items()}


def _numbers(values: Tensor | None, i: int, valid: Tensor, scored: Tensor) -> list[float | None] | None:
    if values is None:
        return None
    row = values[i][valid]
    exists = scored & ~row.isnan()
    return [value if there else None for value, there in zip(row.tolist(), exists.tolist(), strict=True)]
