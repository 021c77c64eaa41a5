"""The metrics of an evaluation against hand values, and their laws."""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_selfdistill.cli.eval_metrics import (
    Interval,
    Sample,
    pass_at_k,
    powers_of_two,
    ratio_interval,
    shown,
    summarise,
)

COUNTS = st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


def sample(problem: int, correct: bool | None, tokens: int = 10, **counts: int) -> Sample:
    filled = {"truncated": False, "epistemic_substrings": 0, "epistemic_words": 0, **counts}
    return Sample(problem, correct, tokens, **filled)


@pytest.mark.parametrize(
    ("n", "c", "k", "value"),
    [(4, 1, 1, 0.25), (4, 1, 2, 0.5), (4, 2, 2, 5 / 6), (4, 0, 4, 0.0), (4, 1, 4, 1.0), (8, 3, 2, 1 - 10 / 28)],
)
def test_pass_at_k_by_hand(n, c, k, value):
    assert pass_at_k(n, c, k) == pytest.approx(value)


@given(COUNTS)
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(counts):
    n, c, k = counts
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@given(COUNTS)
def test_pass_at_n_is_any_and_pass_at_1_the_mean(counts):
    n, c, k = counts
    assert pass_at_k(n, c, n) == (c > 0)
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    assert k == n or pass_at_k(n, c, k) <= pass_at_k(n, c, k + 1)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_refuses_what_cannot_be(n, c, k):
    with pytest.raises(ValueError, match="pass_at_k"):
        pass_at_k(n, c, k)


def test_which_k():
    assert [powers_of_two(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(1, 20)), min_size=1, max_size=20), st.integers(0, 5))
def test_the_interval_holds_the_estimate_which_is_the_ratio_of_sums(pairs, seed):
    tops, bottoms = zip(*pairs, strict=True)
    found = ratio_interval(tops, bottoms, seed=seed, resamples=50)
    assert found.value == pytest.approx(sum(tops) / sum(bottoms), abs=1e-9)
    assert found.low <= found.value <= found.high
    assert found == ratio_interval(tops, bottoms, seed=seed, resamples=50), "seeded"


def test_the_interval_is_that_of_a_binomial_share():
    """100 problems, half of them right: the standard error of the share is 0.05."""
    found = ratio_interval([0.0, 1.0] * 50, resamples=4000)
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.015)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.015)


def test_problems_are_resampled_whole():
    """Eight equal completions a problem tell no more than one: the interval is as wide."""
    once = summarise([sample(p, p % 2 == 0) for p in range(40)], [1])
    often = summarise([sample(p, p % 2 == 0) for p in range(40) for _ in range(8)], [1])
    assert often["pass@1"] == once["pass@1"]


def test_all_metrics_by_hand():
    samples = [
        sample(0, True, 10, epistemic_words=1, epistemic_substrings=2),
        sample(0, False, 30, truncated=True),
        sample(1, False, 20),
        sample(1, False, 40, epistemic_words=1, epistemic_substrings=1),
    ]
    found = {name: interval.value for name, interval in summarise(samples, [1, 2]).items()}
    assert found == {
        "pass@1": 0.25,
        "pass@2": 0.5,
        "length": 25.0,
        "truncated": 0.25,
        "epistemic_substrings": 0.75,
        "epistemic_words": 0.5,
        "epistemic_rate": 20.0,
    }


def test_what_was_not_assessed_does_not_count():
    found = summarise([sample(0, True), sample(1, None, 30)], [1])
    assert (found["pass@1"].value, found["length"].value) == (1.0, 20.0)
    nothing = summarise([sample(0, None)], [1])["pass@1"]
    assert math.isnan(nothing.value) and math.isnan(nothing.low)
    assert shown("pass@1", nothing) == "-"


def test_how_an_interval_is_shown():
    assert shown("pass@1", Interval(0.25, 0.1, 0.4)) == "25.0 % [10.0, 40.0]"
    assert shown("length", Interval(1234.5, 999.4, 2000.0)) == "1234 [999.4, 2000]"
