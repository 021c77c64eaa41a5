"""The health checks as functions of a history of log lines."""

import json
import math
import re

import pytest
from helpers import ROOT

from trl_selfdistill.record.health import RULES, findings, thresholds_of
from trl_selfdistill.record.log_lines import History
from trl_selfdistill.record.monitor import HealthMonitor
from trl_selfdistill.record.symptoms import Facts

FACTS = Facts("RLRT", "plain GRPO", "no group had a correct rollout")
D = "self_distill/"


def lines(*values, every=1, **common):
    """Log lines, `every` steps apart, of metrics that change (dictionaries) and of such that do not."""
    return [{"loss": 0.1, "step": every * (i + 1), "reward": 0.5, **common, **v} for i, v in enumerate(values)]


def found(entries, facts=FACTS, **thresholds):
    return findings(History(entries), thresholds_of(thresholds), facts)


def series(name, *values, **common):
    return lines(*({name: v} for v in values), **common)


START, END = "end_tokens/5_student_logp", "end_tokens/5_teacher_logp"
GATE = {"antisd/gate": 1.0, "antisd/warm_entropy": 1.0}
DRIFT = 12  # steps until the last ones lie apart from the first
# (rule, a history in which it speaks, one of the same kind in which it is silent)
CASES = [
    ("no_teacher", series(f"{D}has_teacher", 0.5, *[0.0] * 5), series(f"{D}has_teacher", 0.5, *[0.0] * 4)),
    ("no_teacher", series(f"{D}has_teacher", 0.0, every=10), series(f"{D}has_teacher", *[0.01] * 9)),
    ("no_weight", series(f"{D}row_weight", 0.5, *[0.0] * 5), series(f"{D}row_weight", *[0.0] * 4, 0.1)),
    ("first_tokens", series(f"{D}log_ratio_start", 7.0), series(f"{D}log_ratio_start", *[1.0] * 9, *[9.0] * 9)),
    ("leakage", series("completions/mentions_solution", 0.6), series("completions/mentions_solution", 0.4)),
    (
        "leakage_rise",
        series("completions/mentions_solution", *[0.0] * 5, *[0.2] * 7),
        series("completions/mentions_solution", *[0.2] * DRIFT),
    ),
    (
        "epistemic",
        series("completions/epistemic_words", *[2.0] * 5, *[0.5] * 7, **{"completions/mean_length": 100.0}),
        # as many words fewer as tokens
        lines(
            *[{"completions/epistemic_words": 2.0, "completions/mean_length": 100.0}] * 5,
            *[{"completions/epistemic_words": 0.5, "completions/mean_length": 25.0}] * 7,
        ),
    ),
    (
        "entropy_low",
        series(f"{D}student_entropy", *[1.0] * 5, *[0.01] * 7),
        series(f"{D}student_entropy", *[1.0] * 5, *[0.1] * 7),
    ),
    (
        "entropy_high",
        series(f"{D}student_entropy", *[1.0] * 5, *[4.0] * 7),
        series(f"{D}student_entropy", *[1.0] * 5, *[2.0] * 7),
    ),
    (
        "length_tail",
        series("completions/length_p95", *[100.0] * 5, *[250.0] * 7),
        series("completions/length_p95", *[100.0] * 5, *[150.0] * 7),
    ),
    (
        "truncated",
        series("completions/clipped_ratio", *[0.1] * 5, *[0.6] * 7),
        series("completions/clipped_ratio", *[0.6] * DRIFT),
    ),
    ("no_spread", series("frac_reward_zero_std", *[1.0] * 5), series("frac_reward_zero_std", *[1.0] * 4, 0.9)),
    (
        "gate_shut",
        series("antisd/gate", 1.0, *[0.0] * 50, **{"antisd/warm_entropy": 1.0}),
        series("antisd/gate", *[0.0] * 60),  # the warm-up
    ),
    ("gate_open", series("antisd/entropy", *[0.5] * 5, **GATE), series("antisd/entropy", *[0.5] * 4, 0.9, **GATE)),
    ("cut_contexts", series(f"{D}context_truncated", 0.3), series(f"{D}context_truncated", 0.1)),
    ("clipped_mass", series("opsd/clipped_entry_mass", 0.6), series("opsd/clipped_entry_mass", 0.4)),
    (
        "end_split",
        lines({"end_tokens/5_share": 0.8, "end_tokens/7_share": 0.2}),
        lines({"end_tokens/5_share": 0.99, "end_tokens/7_share": 0.01}),
    ),
    ("end_disagreement", lines({START: -0.1, END: -5.0}), lines({START: -0.1, END: -1.0})),
]


def test_every_rule_has_a_case():
    assert {name for name, *_ in CASES} == RULES.keys()


@pytest.mark.parametrize(("name", "ill", "well"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_rule_speaks_where_something_is_wrong_and_only_there(name, ill, well):
    message = found(ill)[name]
    assert message.startswith(f"Health check {name!r}: ") and message.endswith(RULES[name].remedy)
    assert "\n" not in message and "{" not in message
    assert found(well) == {}
    switched_off = 0.0 if name in ("epistemic", "entropy_low", "gate_open") else math.inf
    assert name not in found(ill, **{name: switched_off})


@pytest.mark.parametrize("value", [None, math.nan])
def test_what_was_not_measured_is_not_judged(value):
    metrics = {key for _, ill, _ in CASES for entry in ill for key in entry if "/" in key}
    entries = lines(*[dict.fromkeys(metrics, value)] * DRIFT, frac_reward_zero_std=value)
    assert found(entries) == {}
    assert found(lines({})) == {}


def test_the_reasons_why_there_is_no_teacher():
    entries = series(f"{D}has_teacher", *[0.0] * 5)
    assert (
        "RLRT is plain GRPO now, because no group had a correct rollout (5 steps in a row)"
        in found(entries)["no_teacher"]
    )
    unrewarded = series(f"{D}has_teacher", *[0.0] * 5)
    unrewarded[-1]["reward"] = None
    assert "because no rollout had a reward" in found(unrewarded)["no_teacher"]
    opsd = Facts("OPSD", "training on nothing", "no row has a gold solution", learns_from_rewards=False)
    assert "OPSD is training on nothing now, because no row has" in found(unrewarded, opsd)["no_teacher"]


def test_rewards_that_are_not_in_the_loss_need_no_spread():
    entries = series("frac_reward_zero_std", *[1.0] * 9)
    assert found(entries, Facts("OPSD", "", "", learns_from_rewards=False)) == {}


def test_where_no_teacher_is_asked_no_solution_leaks():
    opsa = Facts("OPSA", "", "", learns_from_rewards=False, asks_teacher=False)
    for name, ill, _ in CASES:
        if name in ("leakage", "leakage_rise"):
            assert name in found(ill) and found(ill, opsa) == {}


@pytest.mark.parametrize("given", [{"leakge": 0.1}, {"leakage": "much"}, {"leakage": -1}, {"leakage": True}])
def test_thresholds_that_cannot_be(given):
    with pytest.raises(ValueError, match=r"Did you mean 'leakage'\?|must be a number of at least 0") as error:
        thresholds_of(given)
    assert "health_thresholds" in str(error.value)
    with pytest.raises(ValueError, match="at least 0"):
        thresholds_of({"leakage": math.nan})


def tell(monitor, entries):
    """What is said at each line."""
    return [monitor.see(entries[: i + 1]) for i in range(len(entries))]


def test_a_complaint_is_made_once_until_it_has_gone_and_come_back():
    entries = series(f"{D}context_truncated", 1.0, 1.0, *[0.0] * 10, 0.9, 0.9, 0.9)
    said = tell(HealthMonitor(thresholds_of({"cut_contexts": 0.15}), FACTS), entries)
    assert [bool(messages) for messages in said] == [True, *[False] * 11, True, False, False]


def test_a_resumed_run_says_what_the_unbroken_one_says():
    shares = [0.0, 0.0, 1.0, 1.0, *[0.0] * 9, 1.0, 1.0, 0.0]
    entries = series(f"{D}context_truncated", *shares)
    entries.insert(4, {"eval_loss": 1.0, "step": 4, f"{D}context_truncated": 1.0})
    whole = tell(HealthMonitor(thresholds_of(None), FACTS), entries)
    assert sum(map(len, whole)) == 2
    for cut in range(1, len(entries)):
        resumed = HealthMonitor(thresholds_of(None), FACTS)
        restored = json.loads(json.dumps(entries[:cut]))  # as in trainer_state.json
        assert [resumed.see([*restored, *entries[cut : i + 1]]) for i in range(cut, len(entries))] == whole[cut:]


def test_a_second_training_begins_anew():
    monitor = HealthMonitor(thresholds_of(None), FACTS)
    entries = series(f"{D}context_truncated", 1.0, 1.0)
    assert [len(said) for said in tell(monitor, entries)] == [1, 0]
    assert [len(said) for said in tell(monitor, entries)] == [1, 0]


def test_every_rule_has_its_entry_with_its_threshold():
    text = (ROOT / "docs/health.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", text, re.M))
    assert {name: float(number) for name, number in rows.items()} == {n: r.threshold for n, r in RULES.items()}
    entries = re.findall(r"^### `(\w+)`\n\n(.+?)(?=\n##|\Z)", text, re.M | re.S)
    assert [name for name, _ in entries] == [*RULES]
    assert all("Measured:" in entry and "What to do:" in entry for _, entry in entries)


def test_a_handful_of_words_is_not_judged():
    few = series("completions/epistemic_words", *[0.02] * 5, *[0.0] * 7, **{"completions/mean_length": 20.0})
    assert found(few) == {}
