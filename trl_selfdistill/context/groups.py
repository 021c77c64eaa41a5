"""What the rollouts of a group know of each other. Plain Python; any number of processes chooses alike."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of one rollout in every process."""

    text: str
    """The completion, as the teacher of another rollout is shown it."""
    finished: bool
    passed: bool
    """Whether the correctness reward was reached, finished or not."""
    assessed: bool
    gold: str | None = None

    @property
    def correct(self) -> bool:
        return self.passed and self.finished


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one prompt, with an order of their own for choices that all of them share."""

    outcomes: Sequence[Outcome]
    first: int
    """Global index of the group's first rollout."""
    seed: str

    def others(self, index: int, *, correct: bool | None = None) -> tuple[str, ...]:
        """Texts of the finished rollouts without the one at the global `index`, in the group's order.

        `correct=True` leaves the correct ones, `correct=False` the ones assessed as wrong. Blank texts are left out:
        they tell the teacher nothing. As all rollouts share the order, the first entry is the same for all of them but
        the one that it is, which gets the second.
        """
        order = list(range(len(self.outcomes)))
        random.Random(self.seed).shuffle(order)
        chosen = [self.outcomes[i] for i in order if self.first + i != index]
        return tuple(o.text for o in chosen if o.text.strip() and o.finished and _fits(o, correct))

    @property
    def pass_rate(self) -> float | None:
        """Share of correct rollouts among the assessed ones; `None` where none was assessed."""
        assessed = [outcome.correct for outcome in self.outcomes if outcome.assessed]
        return sum(assessed) / len(assessed) if assessed else None


def make_groups(outcomes: Sequence[Outcome], group_size: int, seed: str) -> list[Group]:
    """The groups of a global batch: consecutive runs of `group_size`.

    Raises `ValueError` when the rollouts do not fill whole groups.
    """
    if len(outcomes) % group_size:
        raise ValueError(f"{len(outcomes)} rollouts do not fill groups of {group_size}.")
    starts = range(0, len(outcomes), group_size)
    return [Group(outcomes[start : start + group_size], start, f"{seed}/{start // group_size}") for start in starts]


def other_gold(groups: Sequence[Group], group: Group) -> str | None:
    """A gold solution of another problem of the batch, the same for all rollouts of `group`; never its own."""
    own = group.outcomes[0].gold
    golds = [other.outcomes[0].gold for other in groups if other is not group]
    candidates = [gold for gold in golds if gold is not None and gold != own]
    return random.Random(f"{group.seed}/other").choice(candidates) if candidates else None


def _fits(outcome: Outcome, correct: bool | None) -> bool:
    if correct is None:
        return True
    return outcome.correct if correct else outcome.assessed and not outcome.passed
