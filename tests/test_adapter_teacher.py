"""The `base` teacher of adapters that change the policy at once scores with that start all the same."""

import copy

import peft
import pytest
import torch
from helpers import build, distill_settings
from transformers import AutoModelForCausalLM

from trl_selfdistill import RLRTConfig, RLRTTrainer
from trl_selfdistill.teachers.adapter import adapter_difference, base_adapter_teacher

TARGETS = {"target_modules": ["q_proj", "v_proj"]}
CHANGE_THE_POLICY = {
    "FourierFT": peft.FourierFTConfig(n_frequency=50, **TARGETS),
    "VBLoRA": peft.VBLoRAConfig(r=2, num_vectors=8, vector_length=16, topk=2, save_only_topk_weights=False, **TARGETS),
    "LoHa": peft.LoHaConfig(r=4, init_weights=False, **TARGETS),
    "LoKr": peft.LoKrConfig(r=4, init_weights=False, **TARGETS),
    "IA3": peft.IA3Config(
        feedforward_modules=["down_proj"], target_modules=["k_proj", "v_proj", "down_proj"], init_ia3_weights=False
    ),
}
ADD_NOTHING = {
    "LoRA": peft.LoraConfig(r=4, **TARGETS),
    "LoHa": peft.LoHaConfig(r=4, **TARGETS),
    "IA3": peft.IA3Config(feedforward_modules=["down_proj"], target_modules=["k_proj", "v_proj", "down_proj"]),
}


def adapted(model, config):
    torch.manual_seed(1)
    return peft.get_peft_model(model, copy.deepcopy(config))


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    model.eval()
    return model(torch.arange(20).reshape(2, 10)).logits


@pytest.mark.parametrize("kind", CHANGE_THE_POLICY)
def test_the_base_teacher_gives_the_starts_logits_after_training(kind, model, tokenizer, tmp_path):
    config = RLRTConfig(**distill_settings(tmp_path, context="gold", teacher_model_kind="base", learning_rate=0.1))
    torch.manual_seed(1)
    peft_config = copy.deepcopy(CHANGE_THE_POLICY[kind])
    trainer = build(RLRTTrainer, config, model, tokenizer, peft_config=peft_config)
    start = logits_of(trainer.model)
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    with trainer.teacher.weights(trainer.model) as teacher:
        assert (logits_of(teacher) - start).abs().max() <= 2e-6
    assert (logits_of(trainer.model) - start).abs().max() > 1e-4
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == trained
    assert not any(".ref" in name for name in trained)


@pytest.mark.parametrize("kind", ADD_NOTHING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_that_adds_nothing_is_switched_off_without_a_copy(kind, dtype, model):
    policy = adapted(model.to(dtype), ADD_NOTHING[kind])
    base_adapter_teacher(policy, preloaded=False)
    assert list(policy.peft_config) == ["default"]


def test_without_a_forward_only_exact_lora_is_switched_off(model_dir):
    for name, config in ADD_NOTHING.items():
        policy = adapted(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32), config)
        base_adapter_teacher(policy, preloaded=False, can_run=False)
        assert ("ref" in policy.peft_config) == (name != "LoRA")


def test_the_probe_leaves_random_numbers_modes_and_trained_parameters_alone(model):
    policy = adapted(model, CHANGE_THE_POLICY["FourierFT"])
    policy.train()
    policy.get_base_model().model.layers[0].eval()
    before = [m.training for m in policy.modules()], [p.requires_grad for p in policy.parameters()]
    state = torch.get_rng_state()
    assert adapter_difference(policy) > 1e-2
    assert torch.equal(torch.get_rng_state(), state)
    assert ([m.training for m in policy.modules()], [p.requires_grad for p in policy.parameters()]) == before
    assert policy.active_adapter == "default"
