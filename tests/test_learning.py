"""Each algorithm learns on the tiny policy, from about 23 %, and fails where it should, visibly. About 20 s a run."""

import contract
import pytest
from helpers import HINT_TEMPLATE, exact_reward, settings, step_logs, sums
from peft import LoraConfig
from tiny_policy import accuracy

from trl_selfdistill import (
    AntiSDConfig,
    AntiSDTrainer,
    EntropyGate,
    OPSAConfig,
    OPSATrainer,
    OPSDConfig,
    OPSDTrainer,
    PowerOPDConfig,
    PowerOPDTrainer,
    RLCSDConfig,
    RLCSDTrainer,
    RLRTConfig,
    RLRTTrainer,
    RLSDConfig,
    RLSDTrainer,
    SDPOConfig,
    SDPOTrainer,
)

pytestmark = [pytest.mark.slow, pytest.mark.apart]

COMMON = {
    "per_device_train_batch_size": 128,
    "num_generations": 8,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "constant",
    "logging_steps": 10,
    "teacher_template": HINT_TEMPLATE,
}


def train(tiny, tmp_path, trainer_class, config_class, *, reward=exact_reward, peft=None, **overrides):
    model, tokenizer = tiny
    before = accuracy(model, tokenizer)
    given = settings(tmp_path, **{**COMMON, **overrides})
    config = config_class(**contract.read_by(trainer_class, given))
    trainer = trainer_class(model, reward, config, sums(repeat=20), processing_class=tokenizer, peft_config=peft)
    trainer.train()
    after = accuracy(trainer.model, tokenizer)
    print(f"\n{trainer_class.__name__} {overrides}: {before:.1%} -> {after:.1%}")
    assert 0.15 < before < 0.35
    return after, step_logs(trainer)


def test_the_teacher_knows_with_the_hint(tiny):
    assert accuracy(*tiny, hint=True) > 0.95


def test_rlrt(tiny, tmp_path):
    after, _ = train(tiny, tmp_path, RLRTTrainer, RLRTConfig, max_steps=150)
    assert after > 0.8


@pytest.mark.parametrize(
    ("trainer", "config"), [(RLSDTrainer, RLSDConfig), (RLCSDTrainer, RLCSDConfig), (SDPOTrainer, SDPOConfig)]
)
def test_the_family_that_needs_rewards(trainer, config, tiny, tmp_path):
    after, _ = train(tiny, tmp_path, trainer, config, max_steps=120)
    assert after > 0.7


def test_power_opd_without_any_reward(tiny, tmp_path):
    after, _ = train(tiny, tmp_path, PowerOPDTrainer, PowerOPDConfig, reward=None, max_steps=120)
    assert after > 0.7


def test_opsa_grows_sure_of_what_it_says_already_right_or_wrong(tiny, tmp_path):
    """Nothing tells it what is right, and most of what this policy says is wrong."""
    after, logs = train(tiny, tmp_path, OPSATrainer, OPSAConfig, max_steps=120)
    assert after < 0.15
    assert logs[-1]["self_distill/student_entropy"] < 0.2 * logs[0]["self_distill/student_entropy"]


def test_antisd_with_its_gate(tiny, tmp_path):
    after, logs = train(tiny, tmp_path, AntiSDTrainer, AntiSDConfig, max_steps=120, logging_steps=1)
    assert after > 0.8
    # Whether the entropy falls, and so the gate closes, depends on the processor's rounding: 120 steps are chaotic.
    gate, states = EntropyGate(), []
    for entry in logs:
        gate = gate.step(entry["antisd/entropy"])
        states.append(float(gate.active))
    assert [entry["antisd/gate"] for entry in logs] == states
    assert states[:5] == [0.0] * 5 and 1.0 in states


def test_antisd_without_its_gate_and_ten_times_stronger_collapses_visibly(tiny, tmp_path):
    overrides = {"antisd_close_ratio": 0.0, "antisd_strength": 5.0, "max_steps": 120}
    after, logs = train(tiny, tmp_path, AntiSDTrainer, AntiSDConfig, **overrides)
    assert after < 0.05
    assert logs[-1]["reward"] < 0.05
    assert logs[0]["antisd/entropy"] < 0.05
    # How it collapses depends on the processor's rounding. That the teacher no longer knows what comes next does not.
    assert logs[-1]["self_distill/teacher_entropy"] > 3 * logs[0]["self_distill/teacher_entropy"]


OPSD = {"num_generations": 1, "learning_rate": 2e-3, "max_steps": 100}


def lora() -> LoraConfig:
    return LoraConfig(r=16, target_modules="all-linear")


def test_opsd_without_any_reward(tiny, tmp_path):
    after, logs = train(tiny, tmp_path, OPSDTrainer, OPSDConfig, reward=None, peft=lora(), **OPSD)
    assert after > 0.85
    assert logs[-1]["opsd/clipped_tokens"] < logs[0]["opsd/clipped_tokens"]


def test_opsds_published_entry_clip_unlearns_and_the_clipped_mass_tells(tiny, tmp_path):
    clip = {"opsd_entry_clip": 0.05, "opsd_token_clip": None}
    after, logs = train(tiny, tmp_path, OPSDTrainer, OPSDConfig, reward=None, peft=lora(), **OPSD, **clip)
    assert after < 0.15
    assert all(entry["opsd/clipped_entry_mass"] > 0.5 for entry in logs)
