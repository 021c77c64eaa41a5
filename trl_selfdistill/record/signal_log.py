"""The scores of a generation batch, collected from its micro-batches, so that statistics are those of the whole."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trl_selfdistill.maths import TokenScores, ViewScores


@dataclass(frozen=True, slots=True)
class Part:
    """What a micro-batch of B rows was taught."""

    rows: Int[Tensor, " B"]
    """Places of the rows among the rollouts of the generation batch: TRL shuffles them."""
    scores: TokenScores
    ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    """Completion tokens, those of tools included."""
    advantages: Float[Tensor, "B T"] | None
    """Token advantages, `None` for an algorithm that has none."""
    metrics: dict[str, Float[Tensor, "B T"]]
    row_advantages: Float[Tensor, " B"] | None = None
    """GRPO's advantages times the row weights, where there are token advantages."""

    def select(self, places: list[int]) -> "Part":
        """The rows at `places` of this part, in that order. The tensors are copies: the rest can be let go."""
        return _selected(self, places)


class SignalLog:
    """Parts of the generation batch in hand. Later passes over the same rollouts (`num_iterations`) are left out."""

    def __init__(self) -> None:
        self.lesson: Any = None
        self._parts: list[Part] = []
        self._seen = 0

    def begin(self, lesson: Any) -> None:
        """A new batch of rollouts: what is left of the one before is dropped."""
        self.lesson, self._parts, self._seen = lesson, [], 0

    @property
    def is_new(self) -> bool:
        """Whether no micro-batch of the batch in hand has been seen yet."""
        return self._seen == 0

    def add(self, part: Part) -> bool:
        """Keep `part`; whether it completes the batch."""
        total = 0 if self.lesson is None else len(self.lesson.rollouts)
        if self._seen >= total:
            return False
        self._seen += len(part.rows)
        self._parts.append(part)
        return self._seen >= total

    def take(self) -> Part | None:
        """What was collected since the last call as one part, `None` where there is nothing."""
        parts, self._parts = self._parts, []
        if not parts:
            return None
        first = parts[0]
        return Part(
            rows=torch.cat([part.rows for part in parts]),
            scores=_joined([part.scores for part in parts]),
            ids=torch.cat([part.ids for part in parts]),
            mask=torch.cat([part.mask for part in parts]),
            advantages=None
            if first.advantages is None
            else torch.cat([p.advantages for p in parts if p.advantages is not None]),
            metrics={name: torch.cat([part.metrics[name] for part in parts]) for name in first.metrics},
            row_advantages=None
            if first.row_advantages is None
            else torch.cat([p.row_advantages for p in parts if p.row_advantages is not None]),
        )


def _joined(scores: list[TokenScores]) -> TokenScores:
    """The scores of several micro-batches as those of one."""
    first = scores[0]
    tensors = {
        f.name: torch.cat([getattr(each, f.name) for each in scores])
        for f in fields(TokenScores)
        if isinstance(getattr(first, f.name), Tensor)
    }
    views = {
        name: ViewScores(
            *(torch.cat([getattr(each.views[name], f.name) for each in scores]) for f in fields(ViewScores))
        )
        for name in first.views
    }
    return replace(first, **tensors, views=views)


def _selected(values: Any, places: list[int]) -> Any:
    """A dataclass of tensors (B, ...) with the rows at `places`. Other values stay."""
    if isinstance(values, Tensor):
        return values[places]
    if isinstance(values, Mapping):
        return {name: _selected(value, places) for name, value in values.items()}
    if is_dataclass(values) and not isinstance(values, type):
        return replace(values, **{f.name: _selected(getattr(values, f.name), places) for f in fields(values)})
    return values
