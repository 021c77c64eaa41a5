"""In which precision the LM head's operands meet: as autocast says, or float32 with `cast_lm_head_to_fp32`."""

from collections import Counter

import pytest
import torch
from helpers import build, distill_settings

from trl_selfdistill import OPSDConfig, OPSDTrainer, RLRTConfig, RLRTTrainer
from trl_selfdistill.ops import linear_divergence, linear_logps
from trl_selfdistill.ops.projection import operand_dtypes
from trl_selfdistill.scoring import tokens
from trl_selfdistill.trainer import divergence

KINDS = {"scoring": (RLRTTrainer, RLRTConfig), "divergence": (OPSDTrainer, OPSDConfig)}


def watch(monkeypatch) -> list[tuple[str, torch.dtype, tuple[torch.dtype, ...]]]:
    """(op, dtype to which it rounds its operands, dtypes that it was given) of each call on the head."""
    seen = []

    def recording(name, op, hidden_count):
        def called(*args, **kwargs):
            given = (*args[:hidden_count], kwargs.get("weight", args[hidden_count]))
            seen.append((name, operand_dtypes(*given)[0], tuple(tensor.dtype for tensor in given)))
            return op(*args, **kwargs)

        return called

    monkeypatch.setattr(tokens, "linear_logps", recording("linear_logps", linear_logps, 1))
    monkeypatch.setattr(divergence, "linear_divergence", recording("linear_divergence", linear_divergence, 2))
    monkeypatch.setattr(divergence, "linear_logps", recording("linear_logps", linear_logps, 1))
    return seen


@pytest.mark.parametrize("teacher", ["live", "base"])
@pytest.mark.parametrize("amp", [True, False])
@pytest.mark.parametrize("fp32_head", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_operands_follow_autocast_unless_the_head_is_fp32(
    kind, fp32_head, amp, teacher, model, tokenizer, tmp_path, monkeypatch
):
    trainer_class, config_class = KINDS[kind]
    settings = {"context": "gold", "bf16": amp, "cast_lm_head_to_fp32": fp32_head, "teacher_model_kind": teacher}
    config = config_class(**distill_settings(tmp_path, max_steps=1, **settings))
    trainer = build(trainer_class, config, model, tokenizer)
    seen = watch(monkeypatch)
    trainer.train()
    rounded = torch.bfloat16 if amp and not fp32_head else torch.float32
    assert {name for name, _, _ in seen} >= {"linear_logps" if kind == "scoring" else "linear_divergence"}
    assert {dtype for _, dtype, _ in seen} == {rounded}, Counter(seen)
    if fp32_head:
        assert {dtype for _, _, given in seen for dtype in given} == {torch.float32}


def test_token_weights_of_a_divergence_are_scored_in_the_same_precision(model, tokenizer, tmp_path, monkeypatch):
    class Weighted(OPSDTrainer):
        _name = "Weighted"
        _paper = {"title": "none", "id": "0000.00000", "citation": "none"}
        _tag_names = ["weighted"]

        def token_weights(self, scores):
            return scores.student_entropy

    config = OPSDConfig(**distill_settings(tmp_path, max_steps=1, context="gold", bf16=True, cast_lm_head_to_fp32=True))
    trainer = build(Weighted, config, model, tokenizer)
    seen = watch(monkeypatch)
    trainer.train()
    assert {(name, dtype) for name, dtype, _ in seen} == {
        ("linear_logps", torch.float32),
        ("linear_divergence", torch.float32),
    }
