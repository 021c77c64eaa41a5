"""What the teacher said about each token of the last batch, kept for `log_token_signals`."""

from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor

from trl_selfdistill.context.rollout import Rollout
from trl_selfdistill.maths import TokenScores


class TokenLog:
    """Rows of the last scored batch of this process, until they are written."""

    def __init__(self, tokenizer: Any) -> None:
        self._decode = tokenizer.decode
        self._rows: list[dict[str, Any]] = []

    def keep(
        self,
        rollouts: list[Rollout],
        contexts: list[str | None],
        scores: TokenScores,
        completion_ids: Tensor,
        completion_mask: Tensor,
        advantages: Tensor,
    ) -> None:
        """Replace the kept rows by those of a new batch. Tokens of rows without a teacher have no log-ratio."""
        self._rows = []
        for i, (rollout, context) in enumerate(zip(rollouts, contexts, strict=True)):
            valid = completion_mask[i].bool()
            ids = completion_ids[i][valid].tolist()
            scored = scores.mask[i][valid].tolist()
            ratios = scores.log_ratio[i][valid].tolist()
            self._rows.append(
                {
                    "context": context,
                    "correct": rollout.correct,
                    "completion": rollout.completion,
                    "tokens": [self._decode([token]) for token in ids],
                    "log_ratio": [u if has else None for u, has in zip(ratios, scored, strict=True)],
                    "advantage": advantages[i][valid].tolist(),
                }
            )

    def write(self, folder: Path, name: str, *, main_process: bool) -> None:
        """Write the rows of all processes to token_signals/`name`.parquet, once. To be called by every process."""
        rows = gather_object(self._rows)
        self._rows = []
        if main_process and rows:
            file = folder / "token_signals" / f"{name.replace('/', '-')}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_list(rows).to_parquet(file)
