"""The task "habits in a known data set": `chain_sum` of reasoning-gym, four one-digit terms, with every step written.

A problem is `4 + 3 - 2 + 8 =`. A derivation takes the terms one after the other, in any order that begins with a
positive one and never falls below 0, and writes every running total: `8 + 4 12 - 2 10 + 3 13`. It is right when it uses
every term once and every total is true. So the truth is that of the data set, the same in all worlds.

What a world decides is where the policy slips. Four of ten steps (running total, sign, digit) are *hard* there: the
policy has a wrong result for each of them, and writes the true one only one time in five. So it can learn to write what
it seldom writes, or to take an order that meets no hard step. In `routes` the second way alone is open, in `sums` the
first one alone.
"""

import itertools
import random
from dataclasses import dataclass
from functools import cached_property

from evidence.task import Judgement

TERMS, LARGEST, DRAWN = 4, 9, 8000
HARD_SHARE, SAID_SHARE = 0.4, 0.2
COPIED = 0.6
TEST_PROBLEMS = 300
_WRONG_BY = (-3, -2, -1, 1, 2, 3)
_SIGNS = {"+": 1, "-": -1}

Term = tuple[str, int]
Step = tuple[int, str, int]
Problem = tuple[Term, ...]


@dataclass(frozen=True)
class Chains:
    """A world: its seed draws the problems, and says which steps are hard."""

    seed: int

    name = "chains"
    limit = 16
    """Most tokens of a completion. A right one has 11 with its end."""

    @cached_property
    def slips(self) -> dict[Step, int]:
        """The hard steps, and the wrong result that the policy has for each."""
        rng = random.Random(f"chains/{self.seed}")
        steps = itertools.product(range(TERMS * (LARGEST + max(_WRONG_BY)) + 1), _SIGNS, range(LARGEST + 1))
        hard = [step for step in steps if rng.random() < HARD_SHARE]
        return {step: rng.choice([made for by in _WRONG_BY if (made := true_result(step) + by) >= 0]) for step in hard}

    @cached_property
    def split(self) -> tuple[list[Problem], list[Problem]]:
        """Training and test problems: every test problem has terms that no other problem has."""
        drawn: dict[Problem, list[Problem]] = {}
        for problem in dict.fromkeys(draw(self.seed)):
            drawn.setdefault(tuple(sorted(problem)), []).append(problem)
        kinds = list(drawn.values())
        random.Random(f"chains/{self.seed}/split").shuffle(kinds)
        train = [problem for same in kinds[TEST_PROBLEMS:] for problem in same]
        return train, [same[0] for same in kinds[:TEST_PROBLEMS]]

    def derivation(self, order: Problem, rng: random.Random | None = None) -> str:
        """The true one along this order; with a generator, the one that the policy writes."""
        total = order[0][1]
        words = [str(total)]
        for sign, digit in order[1:]:
            step = (total, sign, digit)
            slips = rng is not None and step in self.slips and rng.random() >= SAID_SHARE
            total = self.slips[step] if slips else true_result(step)
            words += [sign, str(digit), str(total)]
        return " ".join(words)

    def gold(self, problem: Problem) -> str:
        """A right derivation, the same one for the same terms."""
        terms = tuple(sorted(problem))
        return self.derivation(random.Random(f"chains/{self.seed}/gold/{terms}").choice(orders(terms)))

    def prompt(self, problem: Problem) -> str:
        return " ".join([str(problem[0][1]), *(f"{sign} {digit}" for sign, digit in problem[1:]), "="])

    def plain_label(self, problem: Problem, rng: random.Random) -> str:
        """What the policy says before it has learned: any order, with slips at the hard steps."""
        return self.derivation(rng.choice(orders(problem)), rng)

    def hinted_label(self, problem: Problem, rng: random.Random) -> tuple[str, str]:
        """(hint, label): a right derivation, and the same one in 60 % of cases, else one along any order."""
        possible = orders(problem)
        hint = rng.choice(possible)
        order = hint if rng.random() < COPIED else rng.choice(possible)
        return self.derivation(hint), self.derivation(order)

    def judge(self, problem: Problem, text: str) -> Judgement:
        """Read a completion word by word. `wrong_facts` are the hard steps that it met."""
        read = parsed(text.split())
        if read is None or sorted(read[0]) != sorted(problem):
            return Judgement(right=False, legal=False, route="")
        terms, totals = read
        steps = [(total, *term) for total, term in zip(totals, terms[1:], strict=False)]
        true = [true_result(step) == made for step, made in zip(steps, totals[1:], strict=True)]
        met = [said for step, said in zip(steps, true, strict=True) if step in self.slips]
        route = " ".join(f"{sign}{digit}" for sign, digit in terms)
        return Judgement(all(true), True, route, len(met), sum(met))


def draw(world: int) -> list[Problem]:
    """Problems of reasoning-gym whose result is not negative. Their text is read by word, never evaluated."""
    from reasoning_gym import create_dataset  # seconds of imports

    first = world * DRAWN  # the generator seeds its i-th problem with seed + i: so worlds share none
    data = create_dataset(
        "chain_sum", seed=first, size=DRAWN, min_terms=TERMS, max_terms=TERMS, min_digits=1, max_digits=1
    )
    entries = [data[place] for place in range(DRAWN)]
    return [problem_of(entry["metadata"]["expression"]) for entry in entries if int(entry["answer"]) >= 0]


def problem_of(expression: str) -> Problem:
    words = ["+", *expression.split()]
    return tuple((sign, int(digit)) for sign, digit in zip(words[::2], words[1::2], strict=True))


def true_result(step: Step) -> int:
    """0 where it would be below 0: such a step comes after a slip alone."""
    total, sign, digit = step
    return max(0, total + _SIGNS[sign] * digit)


def orders(problem: Problem) -> list[Problem]:
    """The orders of these terms that begin with a positive one and never fall below 0."""
    return [order for order in itertools.permutations(problem) if order[0][0] == "+" and _stays_up(order)]


def _stays_up(order: Problem) -> bool:
    return min(itertools.accumulate(_SIGNS[sign] * digit for sign, digit in order)) >= 0


def parsed(words: list[str]) -> tuple[list[Term], list[int]] | None:
    """The terms and the running totals of a well-formed completion: a number, then sign, number and total in turn."""
    numbers, signs = words[:1] + words[2::3] + words[3::3], words[1::3]
    if len(words) % 3 != 1 or not all(word.isdecimal() for word in numbers) or not set(signs) <= _SIGNS.keys():
        return None
    digits = [int(word) for word in words[2::3]]
    first = int(words[0])
    return [("+", first), *zip(signs, digits, strict=True)], [first, *map(int, words[3::3])]
