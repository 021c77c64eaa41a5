"""How many pairs a difference needs, computed before any run of the comparison.

    PYTHONPATH=benchmarks python -m evidence.power

The standard deviations are those of six pairs (GRPO, RLRT) in two worlds of an earlier form of the task.
"""

from statsmodels.stats.power import TTestPower

LEVEL, POWER = 0.05, 0.8
DEVIATIONS = {"area under pass@8": 0.031, "area under distinct right routes": 0.136}
"""Standard deviation of one paired difference."""
CONTRASTS = 3
"""RLRT, AntiSD and OPSD against GRPO, each in both primary metrics."""


def detectable(pairs: int, level: float) -> float:
    """The true mean difference, in standard deviations of a pair, that a two-sided paired t-test finds 4 times in 5."""
    return float(TTestPower().solve_power(nobs=pairs, alpha=level, power=POWER, alternative="two-sided"))


def table() -> str:
    """Markdown. The last rows have the strictest level of Holm's correction over all main tests."""
    tests = CONTRASTS * len(DEVIATIONS)
    lines = [f"| pairs | level | SDs | {' | '.join(DEVIATIONS)} |", "|---|---|---|---|---|"]
    for level, name in ((LEVEL, f"{LEVEL}"), (LEVEL / tests, f"{LEVEL} / {tests}")):
        for pairs in (8, 16, 25, 40):
            size = detectable(pairs, level)
            cells = " | ".join(f"{size * deviation:.3f}" for deviation in DEVIATIONS.values())
            lines.append(f"| {pairs} | {name} | {size:.2f} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
