"""The pure functions of `diagnose`: effects by hand, and every rule of the advice."""

import math
import re

import pytest
import torch
from helpers import ROOT

from trl_selfdistill.cli.diagnose_advice import RULES, Facts, Findings, advise
from trl_selfdistill.cli.diagnose_contexts import CONTEXTS, answer_only, choose, gold_without_thinking
from trl_selfdistill.cli.diagnose_effects import effects_of, length_effect
from trl_selfdistill.cli.diagnose_scores import epistemic_mask
from trl_selfdistill.context.rollout import Rollout

STUDENT = Facts(accuracy=0.4, length=1000, epistemic=10)
GOOD = Facts(accuracy=0.9, length=900, epistemic=9)
BAD = Facts(accuracy=0.45, length=900, epistemic=9)
FAST = Facts(accuracy=0.98, length=140, epistemic=0.5)
CASES = {
    "no context": (Findings(STUDENT, {}, 0.0), "No context could be made"),
    "solved": (Findings(Facts(0.97, 10, 0), {"solution": GOOD}, 0.1), "The student is right in 97 % of samples"),
    "nothing to learn": (
        Findings(STUDENT, {"solution": BAD, "other": BAD}, 0.5),
        "OPSD has nothing to learn here; RLRT",
    ),
    "not the content": (Findings(STUDENT, {"solution": GOOD, "other": GOOD}, 0.5), "the form from it, not the content"),
    "only thinking": (Findings(STUDENT, {"solution": GOOD, "thinking": GOOD}, 0.5), "needs no solutions"),
    "suppresses": (Findings(STUDENT, {"solution": FAST}, 0.5), "14 % of the student's length and 5 % of its epistemic"),
    "worth it": (Findings(STUDENT, {"solution": GOOD, "other": STUDENT}, 0.5), "OPSD has something to learn here."),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_speaks_alone(rule):
    findings, part = CASES[rule]
    name, sentence = advise(findings)
    assert name == rule
    assert part in sentence
    assert "\n" not in sentence and sentence.endswith(".")


def test_the_sentence_of_a_teacher_that_cannot_do_it_either():
    found = Findings(Facts(0.21, 20, 0), {"solution": Facts(0.27, 20, 0)}, 0.0)
    assert advise(found)[1] == (
        "The teacher with the full solution answers correctly in 27 % of samples, the student without it in 21 %: OPSD "
        "has nothing to learn here; nor have RLRT and AntiSD: no problem has right and wrong rollouts."
    )


def test_a_context_that_keeps_the_deliberation_is_recommended():
    contexts = {"solution": FAST, "solution_without_thinking": GOOD, "answer": GOOD}
    assert (
        "the solution without its thinking as context is right in 90 %" in advise(Findings(STUDENT, contexts, 0.5))[1]
    )
    assert "RLRT and AntiSD push the other way" in advise(Findings(STUDENT, {"solution": FAST, "answer": FAST}, 0.5))[1]


def test_without_gold_a_right_rollout_stands_for_the_teacher():
    assert advise(Findings(STUDENT, {"peer": GOOD}, 0.5))[1].startswith("The teacher with a right rollout")


def test_without_rewards_there_is_no_advice():
    with pytest.raises(ValueError, match="reward_funcs"):
        advise(Findings(Facts(math.nan, 10, 0), {"solution": GOOD}, 0.0))


def test_the_page_has_every_rule_and_every_context():
    page = (ROOT / "docs/diagnose.md").read_text()
    assert re.findall(r"^\| \d+ \| ([a-z ]+) \|", page, re.M) == list(RULES)
    assert re.findall(r"^\| `([a-z_]+)` \|", page, re.M)[: len(CONTEXTS)] == list(CONTEXTS)


def test_effects_by_hand():
    """A token that the teacher finds half as likely, and is no epistemic one, and one twice as likely, which is."""
    half, double = math.log(0.2), math.log(0.8)
    found = effects_of(
        torch.tensor([math.log(0.4)] * 2),
        torch.tensor([half, double]),
        torch.tensor([0.1, 0.3]),
        torch.tensor([False, True]),
        torch.tensor([True, True]),
        clip=0.8,
    )
    assert found.log_ratio.other == pytest.approx(-math.log(2))
    assert found.log_ratio.epistemic == pytest.approx(math.log(2))
    assert found.rlrt_weight.other == pytest.approx(1.8), "exp(-u) = 2, clipped"
    assert found.rlrt_weight.epistemic == pytest.approx(0.5)
    assert found.antisd_term.other == pytest.approx(-0.25 * (math.log(1.5) - math.log(2)))
    assert found.antisd_term.epistemic == pytest.approx(-0.25 * (math.log(3) - math.log(2)))
    assert found.opsd_shift.other == pytest.approx(-0.2)
    assert found.opsd_shift.epistemic == pytest.approx(0.4)
    assert found.divergence == pytest.approx(0.2)


def test_wrong_rollouts_have_no_rlrt_weight():
    none = torch.zeros(2)
    flags = torch.tensor([False, False])
    found = effects_of(none - 1, none - 2, none, flags, flags)
    assert math.isnan(found.rlrt_weight.other) and math.isnan(found.log_ratio.epistemic)
    assert found.log_ratio.other == -1.0


@pytest.mark.parametrize(
    ("teacher", "toward", "away"),
    [(50.0, "shorter", "longer"), (200.0, "longer", "shorter"), (105.0, "same", "same"), (math.nan, *["unknown"] * 2)],
)
def test_length_effects(teacher, toward, away):
    assert length_effect(teacher, 100.0, toward=True) == toward
    assert length_effect(teacher, 100.0, toward=False) == away


def test_epistemic_words_over_several_tokens():
    pieces = ["Wa", "it", ",", " check", "ing", " is", " may", "be", " it", " MIGHT", "<|end|>"]
    assert epistemic_mask(pieces) == [True, True, False, False, False, False, True, True, False, True, False]
    assert epistemic_mask([]) == []


def rollout(gold: str | None) -> Rollout:
    return Rollout(row={}, completion="", correct=False, gold=gold)


def test_contexts_made_of_the_solution():
    text = "<think>Hmm.</think>So it is \\boxed{7}."
    assert answer_only(rollout(text)).text == "7"
    assert gold_without_thinking(rollout(text)).text == "So it is \\boxed{7}."
    assert answer_only(rollout(None)) is None and gold_without_thinking(rollout(None)) is None


def test_contexts_that_would_be_the_same_are_left_out_with_a_reason():
    everything, notes = choose(["<think>a</think> so 7", None], thinks=True)
    assert everything == list(CONTEXTS) and not notes
    names, notes = choose(["7", "12"], thinks=False)
    assert names == ["none", "solution", "peer", "majority", "other"]
    assert len(notes) == 3 and "the solutions are answers" in " ".join(notes)
    assert choose([None], thinks=True)[0] == ["none", "thinking", "peer", "majority"]
