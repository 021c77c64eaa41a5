"""Statistics of recorded tokens: the density of both policies, u by position, tokens, and kinds of tokens."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from trl_selfdistill.record.wording import EPISTEMIC_WORDS

LOWEST = -8.0
"""Log-probabilities below this share the last cell of the density."""
CELLS = 24
BINS = 24
MOST = 8
"""Tokens that a table holds."""
AROUND = 40
"""Characters of an example before and after its token."""
_WORKING = re.compile(r"[\d\s+\-*/=<>^%().,$\\{}]*[\d+\-*/=<>^%\\][\d\s+\-*/=<>^%().,$\\{}]*")
_STEPS = {"so", "then", "thus", "therefore", "hence", "first", "second", "next", "finally", "since", "because"}
CURVES = (
    ("Reward and correctness", ("reward", "self_distill/correct")),
    ("Completions with a teacher", ("self_distill/has_teacher",)),
    ("Mean u, nats", ("self_distill/log_ratio", "self_distill/log_ratio_epistemic")),
    ("Divergence, nats", ("opsd/divergence", "self_distill/divergence")),
    ("Deliberation words per completion", ("completions/epistemic_words",)),
    ("Tokens per completion", ("completions/mean_length",)),
    ("Entropy, nats", ("self_distill/student_entropy", "self_distill/teacher_entropy")),
    ("Gate and strength", ("antisd/gate", "antisd/strength")),
)
"""Numbers over steps, by the title of their picture. Those that were not logged are left out."""
KINDS = ("epistemic", "procedural", "other")


def kind_of(token: str) -> str:
    """`epistemic`: a deliberation word. `procedural`: numbers, operators, and the words that lead from step to step."""
    word = token.strip().lower()
    if word in EPISTEMIC_WORDS:
        return KINDS[0]
    return KINDS[1] if word in _STEPS or (word and _WORKING.fullmatch(word)) else KINDS[2]


class StepStats:
    """Statistics over the rows of a step, or of several.

    Args:
        rows: of the token log.
        longest: tokens of the run's longest completion, which the positions are a part of.
        centre: what the weight is where the teacher has no opinion.
    """

    def __init__(self, rows: list[dict[str, Any]], longest: int, centre: float) -> None:
        self.rows, self.centre = rows, centre
        self.width = max(1, -(-longest // BINS))
        self.scored = 0
        self.density: Counter[int] = Counter()
        self.positions: dict[int, list[float]] = defaultdict(list)
        self.kinds: dict[str, list[tuple[float | None, float]]] = {kind: [] for kind in KINDS}
        self.found: dict[str, list[tuple[float, int, int]]] = defaultdict(list)
        for number, row in enumerate(rows):
            for place, token, s, u, effect in scored_tokens(row, centre):
                if u is not None:
                    self.density[cell(s) * CELLS + cell(s + u)] += 1
                    self.positions[place // self.width].append(u)
                self.scored += 1
                self.kinds[kind_of(token)].append((u, effect))
                if token:
                    self.found[token].append((effect, number, place))

    def as_json(self) -> dict[str, Any]:
        positions = sorted(self.positions.items())
        return {
            "tokens": self.scored,
            "density": [[at, count] for at, count in sorted(self.density.items())],
            "positions": [[b * self.width, *(round(v, 4) for v in spread(us)), len(us)] for b, us in positions],
            "kinds": [
                [kind, len(pairs), *(mean_of([pair[i] for pair in pairs]) for i in (0, 1))]
                for kind, pairs in self.kinds.items()
                if pairs
            ],
            "most": self.top(reinforced=True),
            "least": self.top(reinforced=False),
            "sources": self.sources(),
        }

    def top(self, *, reinforced: bool) -> list[dict[str, Any]]:
        """The tokens with the largest sum of effects, or the smallest: token, count, sum, mean, example."""
        sums = {token: math.fsum(effect for effect, _, _ in hits) for token, hits in self.found.items()}
        sign = 1 if reinforced else -1
        ordered = sorted((t for t in sums if sign * sums[t] > 1e-4), key=lambda t: (-sign * sums[t], t))[:MOST]
        made = []
        for token in ordered:
            hits = self.found[token]
            _, number, place = max(hits, key=lambda hit: sign * hit[0])
            before, after = around(self.rows[number]["tokens"], place)
            numbers = {"n": len(hits), "sum": round(sums[token], 4), "mean": round(sums[token] / len(hits), 4)}
            made.append({"token": token, **numbers, "before": before, "after": after})
        return made

    def sources(self) -> list[list[Any]]:
        """[where the context came from, completions, how many of them are correct]; `None` is without a teacher."""
        counts: dict[str | None, list[int]] = defaultdict(lambda: [0, 0])
        for row in self.rows:
            counts[row["context_source"]][0] += 1
            counts[row["context_source"]][1] += row["correct"]
        return [[name, *counts[name]] for name in sorted(counts, key=lambda name: (name is None, name))]


def scored_tokens(row: dict[str, Any], centre: float) -> Iterator[tuple[int, str, float, float | None, float]]:
    """(position, token, s, u, effect) of each scored token. u is `None` where no teacher was asked.

    The effect is A_t - A, what is added to GRPO's advantage; where there is no advantage, u.
    """
    plain, advantages = row["row_advantage"], row["advantage"]
    for place, (token, s, u) in enumerate(zip(row["tokens"], row["student_logps"], row["log_ratio"], strict=True)):
        effect = u if advantages is None or plain is None else advantages[place] - plain
        if s is not None and math.isfinite(s) and effect is not None and (u is None or math.isfinite(u)):
            yield place, token, s, u, effect


def cell(logp: float) -> int:
    """The cell of a log-probability: the first is `LOWEST` and below, the last is 0."""
    return min(CELLS - 1, max(0, int((logp - LOWEST) / -LOWEST * CELLS)))


def mean_of(values: Sequence[float | None]) -> float | None:
    """The rounded mean of the values that there are; `None` where there is none."""
    known = [value for value in values if value is not None]
    return rounded(mean(known)) if known else None


def rounded(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, 4)


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    middle = mean(values)
    squares = math.fsum((v - middle) ** 2 for v in values)
    return middle, math.sqrt(squares / max(1, len(values) - 1) / len(values))


def around(tokens: list[str], place: int) -> tuple[str, str]:
    """The text before and after a token, cut to `AROUND` characters."""
    return "".join(tokens[max(0, place - AROUND) : place])[-AROUND:], "".join(tokens[place + 1 : place + AROUND])[
        :AROUND
    ]
