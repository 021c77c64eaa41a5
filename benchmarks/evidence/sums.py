"""The easy control: sums of two numbers from 1 to 12, which the policy knows and says one time in four.

`7 8 =` is answered by `15`, one number. There is one right answer, so nothing can be lost but the answer itself.
"""

import itertools
import random
from dataclasses import dataclass
from functools import cached_property

from evidence.task import Judgement

LARGEST, TEST_PROBLEMS = 12, 48
RIGHT_SHARE = 0.25
_WRONG_BY = (-3, -2, -1, 1, 2, 3)

Problem = tuple[int, int]


@dataclass(frozen=True)
class Sums:
    """The seed decides which problems are held out. Hints and training see the others alone."""

    seed: int

    name = "sums"
    limit = 3

    @cached_property
    def split(self) -> tuple[list[Problem], list[Problem]]:
        problems = list(itertools.product(range(1, LARGEST + 1), repeat=2))
        random.Random(f"sums/{self.seed}/split").shuffle(problems)
        return problems[TEST_PROBLEMS:], problems[:TEST_PROBLEMS]

    def prompt(self, problem: Problem) -> str:
        return f"{problem[0]} {problem[1]} ="

    def gold(self, problem: Problem) -> str:
        return str(sum(problem))

    def plain_label(self, problem: Problem, rng: random.Random) -> str:
        return str(sum(problem) if rng.random() < RIGHT_SHARE else max(0, sum(problem) + rng.choice(_WRONG_BY)))

    def hinted_label(self, problem: Problem, rng: random.Random) -> tuple[str, str]:
        return self.gold(problem), self.gold(problem)

    def judge(self, problem: Problem, text: str) -> Judgement:
        right = text == self.gold(problem)
        return Judgement(right, text.isdigit(), text)
