"""What the teacher said about each token of the last batch, kept for `log_token_signals`."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from accelerate.utils import gather_object
from torch import Tensor

from trl_selfdistill.context.rollout import Context, Rollout
from trl_selfdistill.record.signal_log import Part

_NUMBERS = ("student_logps", "teacher_logps", "log_ratio", "student_entropy", "teacher_entropy", "weight", "advantage")
SCHEMA = pyarrow.schema(
    [
        ("step", pyarrow.int64()),
        ("prompt", pyarrow.string()),
        ("completion", pyarrow.string()),
        ("context", pyarrow.string()),
        ("context_source", pyarrow.string()),
        ("correct", pyarrow.bool_()),
        ("reward", pyarrow.float64()),
        ("tokens", pyarrow.list_(pyarrow.string())),
        *((name, pyarrow.list_(pyarrow.float32())) for name in _NUMBERS),
    ]
)
"""One row per completion; lists have one entry per token, `null` where a number does not exist."""


class TokenLog:
    """Rows of the last scored batch of this process, until they are written."""

    def __init__(self, tokenizer: Any) -> None:
        self._decode = tokenizer.decode
        self._rows: list[dict[str, Any]] = []

    def keep(self, part: Part, rollouts: list[Rollout], contexts: list[Context | None]) -> None:
        """Replace the kept rows by those of a new batch. Tokens of rows without a teacher have no scores."""
        scores = part.scores
        weight = next(iter(part.metrics.values()), None)
        numbers = {
            "student_logps": scores.student_logps,
            "teacher_logps": scores.teacher_logps,
            "log_ratio": scores.log_ratio,
            "student_entropy": scores.student_entropy,
            "teacher_entropy": scores.teacher_entropy,
            "weight": weight,
        }
        self._rows = []
        for i, row in enumerate(part.rows.tolist()):
            rollout, context, valid = rollouts[row], contexts[row] if contexts else None, part.mask[i]
            scored = scores.mask[i][valid]
            columns = {name: _numbers(v, i, valid, scored) for name, v in numbers.items()}
            columns["advantage"] = None if part.advantages is None else part.advantages[i][valid].tolist()
            self._rows.append(
                {
                    "step": rollout.step,
                    "prompt": rollout.prompt
                    if isinstance(rollout.prompt, str)
                    else json.dumps(rollout.prompt, default=str),
                    "completion": rollout.completion,
                    "context": None if context is None else context.text,
                    "context_source": None if context is None else context.source,
                    "correct": rollout.correct,
                    "reward": rollout.reward,
                    "tokens": [self._decode([token]) for token in part.ids[i][valid].tolist()],
                    **columns,
                }
            )

    def write(self, folder: str | None, name: str, *, main_process: bool) -> None:
        """Write the rows of all processes to token_signals/`name`.parquet, once. To be called by every process."""
        rows = gather_object(self._rows)
        self._rows = []
        if main_process and rows:
            file = Path(folder or ".") / "token_signals" / f"{name.replace('/', '-')}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA), file)


def _numbers(values: Tensor | None, i: int, valid: Tensor, scored: Tensor) -> list[float | None] | None:
    if values is None:
        return None
    row = values[i][valid]
    exists = scored & ~row.isnan()
    return [value if there else None for value, there in zip(row.tolist(), exists.tolist(), strict=True)]
