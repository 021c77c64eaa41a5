"""Each algorithm learns on the tiny policy, from about 23 %, and fails where it should, visibly. About 20 s a run."""

import sys

import pytest
from helpers import ROOT, step_logs
from tiny_policy import accuracy

from trl_selfdistill import EntropyGate

sys.path.insert(0, str(ROOT / "benchmarks"))
from tiny_runs import RUNS, make_trainer

pytestmark = [pytest.mark.slow, pytest.mark.apart]


def train(tiny, tmp_path, name, *, logging_steps=10, **overrides):
    """Make one of the runs of `benchmarks/tiny_runs.py`."""
    model, tokenizer = tiny
    before = accuracy(model, tokenizer)
    trainer = make_trainer(RUNS[name], model, tokenizer, tmp_path, logging_steps=logging_steps, **overrides)
    trainer.train()
    after = accuracy(trainer.model, tokenizer)
    print(f"\n{name} {overrides}: {before:.1%} -> {after:.1%}")
    assert 0.15 < before < 0.35
    return after, step_logs(trainer)


def test_the_teacher_knows_with_the_hint(tiny):
    assert accuracy(*tiny, hint=True) > 0.95


def test_rlrt(tiny, tmp_path):
    after, _ = train(tiny, tmp_path, "rlrt")
    assert after > 0.8


@pytest.mark.parametrize("name", ["rlsd", "rlcsd", "sdpo"])
def test_the_family_that_needs_rewards(name, tiny, tmp_path):
    after, _ = train(tiny, tmp_path, name)
    assert after > 0.7


def test_power_opd_without_any_reward(tiny, tmp_path):
    after, _ = train(tiny, tmp_path, "poweropd")
    assert after > 0.7


def test_opsa_grows_sure_of_what_it_says_already_right_or_wrong(tiny, tmp_path):
    """Nothing tells it what is right, and most of what this policy says is wrong."""
    after, logs = train(tiny, tmp_path, "opsa")
    assert after < 0.15
    assert logs[-1]["self_distill/student_entropy"] < 0.2 * logs[0]["self_distill/student_entropy"]


def test_antisd_with_its_gate(tiny, tmp_path):
    after, logs = train(tiny, tmp_path, "antisd", logging_steps=1)
    assert after > 0.8
    # Whether the entropy falls, and so the gate closes, depends on the processor's rounding: 120 steps are chaotic.
    gate, states = EntropyGate(), []
    for entry in logs:
        gate = gate.step(entry["antisd/entropy"])
        states.append(float(gate.active))
    assert [entry["antisd/gate"] for entry in logs] == states
    assert states[:5] == [0.0] * 5 and 1.0 in states


def test_antisd_without_its_gate_and_ten_times_stronger_collapses_visibly(tiny, tmp_path):
    after, logs = train(tiny, tmp_path, "antisd_collapse")
    assert after < 0.05
    assert logs[-1]["reward"] < 0.05
    assert logs[0]["antisd/entropy"] < 0.05
    # How it collapses depends on the processor's rounding. That the teacher no longer knows what comes next does not.
    assert logs[-1]["self_distill/teacher_entropy"] > 3 * logs[0]["self_distill/teacher_entropy"]


def test_opsd_without_any_reward(tiny, tmp_path):
    after, logs = train(tiny, tmp_path, "opsd")
    assert after > 0.85
    assert logs[-1]["opsd/clipped_tokens"] < logs[0]["opsd/clipped_tokens"]


def test_opsds_published_entry_clip_unlearns_and_the_clipped_mass_tells(tiny, tmp_path):
    after, logs = train(tiny, tmp_path, "opsd_entry_clip")
    assert after < 0.15
    assert all(entry["opsd/clipped_entry_mass"] > 0.5 for entry in logs)
