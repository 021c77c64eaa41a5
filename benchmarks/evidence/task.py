"""What a task is: problems of a world, a policy's first habits, hints, and a judge. Tasks differ in nothing else."""

from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

HINT_TEMPLATE = "[ {context} ] {prompt}"


@dataclass(frozen=True)
class Judgement:
    """What a completion is worth, and why."""

    right: bool
    legal: bool
    """Well formed, and true to the world's facts."""
    route: str
    """The way that a legal completion took, of those that the task knows. Empty for others."""
    wrong_facts: int = 0
    """Wrong facts that were met."""
    repaired: int = 0
    """Of those, how many were written with the true result."""


class Task(Protocol):
    """One world of a task. Two with the same name and seed are equal."""

    name: str
    seed: int
    limit: int

    @property
    def split(self) -> tuple[list[Any], list[Any]]:
        """Training and test problems."""
        ...

    def prompt(self, problem: Any) -> str: ...

    def gold(self, problem: Any) -> str:
        """A right completion."""
        ...

    def plain_label(self, problem: Any, rng: Random) -> str: ...

    def hinted_label(self, problem: Any, rng: Random) -> tuple[str, str]: ...

    def judge(self, problem: Any, text: str) -> Judgement: ...
