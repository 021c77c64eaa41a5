"""The claims of docs/evidence.md: each verdict of the one rule, on made-up results."""

import sys

import numpy as np
import pytest
from helpers import ROOT
from scipy import stats
from statsmodels.stats.multitest import multipletests

sys.path.insert(0, str(ROOT / "benchmarks"))
from evidence import claims, methods, plan, verdicts
from evidence.claims import CLOSE, LESS, MORE, START, Claim, Contrast

WORLDS = plan.OTHER_PAIRS
NOISE = np.random.default_rng(0).normal(size=(4, WORLDS)) * 0.01
NOISE -= NOISE.mean(axis=1, keepdims=True)  # so that the means over worlds are those that are asked for


def runs(method, mean, *, noise=0, worlds=WORLDS, start=0.3):
    """One run a world: pass@1 and entropy go from `start` to `mean`, with the noise of that number."""
    return [
        {
            "method": method,
            "world": world,
            "seed": 0,
            "curve": [
                {"step": 0, "pass1": start, "entropy": start, "routes": start},
                {
                    "step": 100,
                    **dict.fromkeys(("pass1", "entropy", "routes"), mean + float(NOISE[noise, world % WORLDS])),
                },
            ],
        }
        for world in range(worlds)
    ]


def claim(ours, theirs, direction, metric="pass1", end=True):
    return Claim("it does", "somewhere", Contrast(ours, theirs, direction, metric, end))


RESULTS = {
    "rlsd": runs("rlsd", 0.5, noise=1),
    "rlrt_ungated": runs("rlrt_ungated", 0.7, noise=2),
    "sdpo": runs("sdpo", 0.503, noise=3),
    "rlcsd": runs("rlcsd", 0.5, noise=1),
}


def verdict_of(made_claim, results=RESULTS, task="routes"):
    return verdicts.decided(results, task, [made_claim])[0]


@pytest.mark.parametrize(
    ("ours", "theirs", "direction", "expected"),
    [
        ("rlrt_ungated", "rlsd", MORE, verdicts.SEEN),
        ("rlsd", "rlrt_ungated", LESS, verdicts.SEEN),
        ("rlrt_ungated", "rlsd", LESS, verdicts.OPPOSITE),
        ("rlsd", "rlrt_ungated", MORE, verdicts.OPPOSITE),
        ("sdpo", "rlsd", MORE, verdicts.NOT_SEEN),
        ("sdpo", "rlsd", CLOSE, verdicts.SEEN),
        ("rlrt_ungated", "rlsd", CLOSE, verdicts.OPPOSITE),
        ("rlsd", START, MORE, verdicts.SEEN),
        ("rlsd", START, LESS, verdicts.OPPOSITE),
        ("rlcsd", "rlsd", MORE, verdicts.NOT_SEEN),  # number for number the same
    ],
)
def test_each_verdict(ours, theirs, direction, expected):
    made = verdict_of(claim(ours, theirs, direction))
    assert made.verdict == expected
    assert made.difference.pairs == WORLDS


def test_a_wide_interval_shows_no_closeness():
    loud = {"rlsd": runs("rlsd", 0.5, noise=1), "sdpo": runs("sdpo", 0.5, noise=2)}
    for world, run in enumerate(loud["sdpo"]):
        run["curve"][-1]["pass1"] += 0.2 * (-1) ** world
    assert verdict_of(claim("sdpo", "rlsd", CLOSE), loud).verdict == verdicts.NOT_SEEN


def test_what_could_have_been_found_is_told():
    made = verdict_of(claim("sdpo", "rlsd", MORE))
    test = stats.ttest_rel(
        [r["curve"][-1]["pass1"] for r in RESULTS["sdpo"]], [r["curve"][-1]["pass1"] for r in RESULTS["rlsd"]]
    )
    assert (made.low, made.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert made.findable == pytest.approx(1.16 * made.difference.deviation, rel=0.01)  # power.py: 8 pairs at 0.05
    text = verdicts.row(claim("sdpo", "rlsd", MORE), made, "routes")
    assert text[2:5] == ["**not seen**", "sdpo - rlsd > 0, pass@1 at the end", WORLDS]
    assert text[-1] == f"{made.findable:.3f}"


def test_nothing_is_decided_before_all_planned_worlds_are_finished():
    contrast = claim("sdpo", "rlsd", MORE)
    assert verdict_of(contrast, {**RESULTS, "sdpo": RESULTS["sdpo"][:-1]}) is None
    assert verdict_of(contrast, {}) is None
    assert verdicts.row(contrast, None, "routes")[2] == "not run yet"
    main = {"rlrt": runs("rlrt", 0.6, noise=1), "grpo": runs("grpo", 0.5, noise=2)}
    against_grpo = claim("rlrt", "grpo", MORE)
    assert verdict_of(against_grpo, main) is None  # 25 worlds are planned
    assert verdict_of(against_grpo, main, "chains").verdict == verdicts.SEEN  # eight there
    whole = {
        name: runs(name, mean, noise=i, worlds=25) for i, (name, mean) in enumerate((("rlrt", 0.6), ("grpo", 0.5)))
    }
    assert verdict_of(against_grpo, whole).difference.pairs == 25
    whole["sdpo"] = runs("sdpo", 0.5, noise=3, worlds=9)
    assert verdict_of(claim("sdpo", "grpo", MORE), whole).difference.pairs == WORLDS  # others are left out


def test_the_metric_and_the_place_are_those_of_the_contrast():
    results = {name: runs(name, mean, noise=1) for name, mean in (("sdpo", 0.5), ("rlsd", 0.7))}
    area, end = (verdict_of(claim("rlsd", "sdpo", MORE, end=e), results).difference for e in (False, True))
    assert (area.mean, end.mean) == (pytest.approx(0.1), pytest.approx(0.2))
    for run in results["rlsd"]:
        run["curve"][-1]["entropy"] = 0.1
    assert verdict_of(claim("rlsd", "sdpo", MORE, "entropy"), results).verdict == verdicts.OPPOSITE


def test_levels_reject_what_holms_method_rejects():
    rng = np.random.default_rng(0)
    for _ in range(10):
        ps = list(rng.uniform(size=6) ** 4)
        missing = [1.0] * 3  # contrasts that have not been run count as tests
        rejected = multipletests([*ps, *missing], alpha=0.05, method="holm")[0][:6]
        assert [p <= level for p, level in zip(ps, verdicts.levels(ps, 9), strict=True)] == list(rejected)


def test_contrasts_that_are_not_run_widen_the_intervals():
    alone = verdict_of(claim("sdpo", "rlsd", MORE))
    others = [claim("opsd_live", "opsd_ema", LESS)] * 9
    among = verdicts.decided(RESULTS, "routes", [claim("sdpo", "rlsd", MORE), *others])
    assert among[1:] == [None] * 9
    assert (among[0].low, among[0].findable) < (alone.low, np.inf)
    assert among[0].high > alone.high
    assert among[0].findable > alone.findable


def test_a_task_that_lacks_what_a_claim_is_about_says_so():
    no_words = Claim("words vanish", "somewhere", lacks="no words")
    assert verdicts.decided(RESULTS, "routes", [no_words]) == [None]
    assert verdicts.row(no_words, None, "routes")[2] == "cannot be seen at this size: no words"


def test_each_claim_has_a_contrast_of_planned_runs_or_a_reason():
    planned = {(run["task"], run["method"]) for run in plan.full_plan() if run["part"] == "main"}
    for made in claims.CLAIMS:
        assert (made.contrast is None) == bool(made.lacks), made
        assert made.says and made.source
        for name in (made.contrast.ours, made.contrast.theirs) if made.contrast else ():
            assert name == START or ("routes", name) in planned
    contrasts = [made.contrast for made in claims.CLAIMS if made.contrast]
    assert len(contrasts) == len(set(contrasts))
    kinds = {
        methods.METHODS[name].config.get("teacher_model_kind")
        for c in contrasts
        for name in (c.ours, c.theirs)
        if name != START
    }
    assert kinds == {None, "live", "base", "ema"}


def test_the_table_has_a_row_a_claim():
    text = verdicts.claims_table({}, "routes")
    assert text.count("\n") == len(claims.CLAIMS) + 1
    contrasts = [made.contrast for made in claims.CLAIMS if made.contrast]
    assert text.count("not run yet") == len(contrasts)
    absent = [c for c in contrasts if {c.ours, c.theirs} & set(plan.LEFT_OUT["chains"])]
    text = verdicts.claims_table({}, "chains")
    assert text.count(verdicts.NOT_PLANNED) == len(absent) == 8
    assert text.count("not run yet") == len(contrasts) - len(absent)
