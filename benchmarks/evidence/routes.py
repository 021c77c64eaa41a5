"""The task "wrong facts, many routes": add four numbers in an order in which no wrong fact is met.

A problem is four different numbers from 1 to 12, `3 8 5 9 =`. A derivation adds them one after the other and writes
every running sum: `8 5 13 3 16 9 25`. The *route* is the order: there are 24. In each *world* some facts (running sum,
number) are wrong: there `8 5` is 15, say. A wrong result is always too large, so errors never cancel: a route leads to
the true sum exactly when it meets no wrong fact. A derivation is right when it uses every number once, follows the
world's facts, and ends at the true sum.

The policy knows the facts of its world, and not which of them are wrong. Writing the true sum where the world says
another earns nothing: facts cannot be repaired, only avoided. What is to be learned is the choice of the route.
"""

import itertools
import random
from dataclasses import dataclass
from functools import cached_property

from evidence.task import Judgement

LARGEST, LENGTH = 12, 4
WRONG_SHARE = 0.35
COPIED = 0.6
TEST_PROBLEMS = 300
_TOO_LARGE_BY = (1, 2, 3)
_TOP = sum(range(LARGEST - LENGTH + 1, LARGEST + 1)) + (LENGTH - 1) * max(_TOO_LARGE_BY)
"""The largest running sum that can be written."""

Fact = tuple[int, int]
Problem = tuple[int, ...]


@dataclass(frozen=True)
class Routes:
    """A world: its seed says which facts are wrong. Problems without any right route are not asked."""

    seed: int
    wrong_share: float = WRONG_SHARE

    name = "routes"
    limit = 12
    """Most tokens of a completion. A right one has 8 with its end."""

    @cached_property
    def results(self) -> dict[Fact, int]:
        """What each running sum and number make in this world."""
        rng = random.Random(f"routes/{self.seed}")
        facts = itertools.product(range(1, _TOP + 1), range(1, LARGEST + 1))
        return {(s, d): s + d + (rng.choice(_TOO_LARGE_BY) if rng.random() < self.wrong_share else 0) for s, d in facts}

    def derivation(self, route: Problem) -> list[int]:
        """The numbers of a derivation along this route, as the world's facts have it."""
        numbers, total = [route[0]], route[0]
        for number in route[1:]:
            total = self.results[total, number]
            numbers += [number, total]
        return numbers

    def right_routes(self, problem: Problem) -> list[Problem]:
        """The orders of these numbers that lead to their true sum."""
        return [route for route in itertools.permutations(problem) if self.derivation(route)[-1] == sum(problem)]

    @cached_property
    def split(self) -> tuple[list[Problem], list[Problem]]:
        """Training and test problems: every test problem has a set of numbers that no other problem has."""
        rng = random.Random(f"routes/{self.seed}/split")
        sets = list(itertools.combinations(range(1, LARGEST + 1), LENGTH))
        sets = [numbers for numbers in sets if self.right_routes(numbers)]
        rng.shuffle(sets)
        test = [tuple(rng.sample(numbers, LENGTH)) for numbers in sets[:TEST_PROBLEMS]]
        train = [order for numbers in sets[TEST_PROBLEMS:] for order in itertools.permutations(numbers)]
        return train, test

    def gold(self, problem: Problem) -> str:
        """A right derivation, the same one for each order of the same numbers."""
        rng = random.Random(f"routes/{self.seed}/gold/{sorted(problem)}")
        return text_of(self.derivation(rng.choice(self.right_routes(tuple(sorted(problem))))))

    def prompt(self, problem: Problem) -> str:
        return f"{text_of(problem)} ="

    def plain_label(self, problem: Problem, rng: random.Random) -> str:
        """What the policy says before it has learned: a derivation along any route."""
        return text_of(self.derivation(tuple(rng.sample(problem, LENGTH))))

    def hinted_label(self, problem: Problem, rng: random.Random) -> tuple[str, str]:
        """(hint, label): a right derivation, and the same one in 60 % of cases, else one along any right route."""
        right = self.right_routes(problem)
        hint = rng.choice(right)
        route = hint if rng.random() < COPIED else rng.choice(right)
        return text_of(self.derivation(hint)), text_of(self.derivation(route))

    def judge(self, problem: Problem, text: str) -> Judgement:
        return judge(problem, text, self.results)


def text_of(numbers: list[int] | Problem) -> str:
    return " ".join(map(str, numbers))


def judge(problem: Problem, text: str, results: dict[Fact, int]) -> Judgement:
    """Read a completion number by number."""
    words = text.split()
    numbers = [int(word) for word in words if word.isdigit()]
    route, sums = (*numbers[:1], *numbers[1::2]), numbers[2::2]
    facts = list(zip([*numbers[:1], *sums], route[1:], sums, strict=False))
    wrong = [(s, d, made) for s, d, made in facts if results.get((s, d), s + d) != s + d]
    repaired = sum(made == s + d for s, d, made in wrong)
    complete = len(numbers) == len(words) == 2 * len(problem) - 1 and sorted(route) == sorted(problem)
    legal = complete and all(results.get((s, d)) == made for s, d, made in facts)
    right = legal and sums[-1] == sum(problem)
    return Judgement(right, legal, text_of(tuple(route)) if legal else "", len(wrong), repaired)
