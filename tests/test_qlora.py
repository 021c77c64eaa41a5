"""A base model in few bits: what cannot be had with it is refused, and its teachers leave the adapter alone."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import build, distill_settings
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trl_selfdistill import AntiSDConfig, AntiSDTrainer, OPSDConfig, OPSDTrainer, RLRTConfig, RLRTTrainer
from trl_selfdistill.teachers.adapter import REFERENCE_ADAPTER, base_adapter_teacher
from trl_selfdistill.trainer.arguments import check_sampler_precision

TRAINERS = {RLRTTrainer: RLRTConfig, AntiSDTrainer: AntiSDConfig, OPSDTrainer: OPSDConfig}
NF4 = BitsAndBytesConfig(load_in_4bit=True)
INT8 = BitsAndBytesConfig(load_in_8bit=True)
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda t: t.__name__)
@pytest.mark.parametrize(("quantization", "bits"), [(NF4, 4), (INT8, 8)])
def test_vllm_beside_few_bits_is_refused(trainer, quantization, bits, model_dir, tokenizer, tmp_path):
    config = TRAINERS[trainer](**distill_settings(tmp_path, use_vllm=True))
    said = rf"use_vllm=True with a base model in {bits} bits.*3466.*5975.*use_vllm=False.*bfloat16"
    with pytest.raises(ValueError, match=said):
        build(trainer, config, str(model_dir), tokenizer, quantization_config=quantization, peft_config=LORA)


def stored(folder, quantization):
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "qwen3", "quantization_config": quantization.to_dict()})
    )
    return str(folder)


@pytest.mark.parametrize("where", ["argument", "model_init_kwargs", "folder", "model"])
def test_few_bits_are_seen_wherever_they_were_asked_for(where, model_dir, tmp_path):
    args = SimpleNamespace(use_vllm=True, model_init_kwargs=None)
    model, quantization = str(model_dir), None
    check_sampler_precision(args, model, None)
    if where == "argument":
        quantization = NF4
    elif where == "model_init_kwargs":
        args.model_init_kwargs = {"quantization_config": NF4}
    elif where == "folder":
        model = stored(tmp_path / "stored", NF4)
    else:
        model = SimpleNamespace(config=SimpleNamespace(quantization_config=NF4))
    with pytest.raises(ValueError, match="base model in 4 bits"):
        check_sampler_precision(args, model, quantization)
    args.use_vllm = False
    check_sampler_precision(args, model, quantization)


def test_the_base_teachers_own_adapter_stays_out_of_what_is_synchronised(tokenizer, model_dir):
    """A sampler that is sent the adapter alone gets the trained one, during and after the teacher's work."""
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    policy = get_peft_model(base, LORA)
    before = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(policy).items()}
    teacher = base_adapter_teacher(policy, preloaded=True)
    assert REFERENCE_ADAPTER in policy.peft_config
    with teacher.weights(policy):
        assert get_peft_model_state_dict(policy, adapter_name="default").keys() == before.keys()
    assert policy.active_adapter == "default"
    after = get_peft_model_state_dict(policy)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    policy.merge_adapter()
    merged = [layer.merged_adapters for layer in policy.modules() if getattr(layer, "merged_adapters", None)]
    assert merged
    assert all(names == ["default"] for names in merged)
