"""What TRL sends to vLLM after our teachers have scored: what it would send for GRPO with the same adapter.

vLLM itself is not here. TRL's own code decides what is sent; a client that keeps the tensors takes the place of vLLM's.
"""

from typing import Any

import contract
import pytest
import torch
from accelerate import Accelerator
from helpers import build, distill_settings, settings
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.async_grpo.async_grpo_trainer import save_lora_adapter, validate_lora_for_vllm_sync
from trl.generation.vllm_generation import VLLMGeneration

from trl_selfdistill.teachers.adapter import REFERENCE_ADAPTER

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])


class Client:
    """Keeps what a vLLM server would be sent."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.weights: dict[str, torch.Tensor] = {}

    def update_named_params(self, metadata: list[Any], named: Any) -> None:
        self.told = metadata
        self.weights = {name: tensor.detach().clone() for name, tensor in named}

    def reset_prefix_cache(self) -> None:
        pass


class Generation(VLLMGeneration):
    """TRL's, beside a server that is not there."""

    def _init_vllm(self) -> None:
        self.vllm_client = Client()


def sent(trainer: Any) -> dict[str, torch.Tensor]:
    """The weights of one synchronisation."""
    generation = Generation(trainer.model, trainer.accelerator, trainer.processing_class, mode="server")
    generation.sync_weights()
    client: Any = generation.vllm_client
    assert [(name, [*tensor.shape]) for name, tensor in client.weights.items()] == [
        (name, shape) for name, _, shape in client.told
    ]
    return client.weights


class Sync(TrainerCallback):
    """Sends the weights after every step, and keeps the adapter beside them."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.sent: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        adapter = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(self.trainer.model).items()}
        self.sent.append((adapter, sent(self.trainer)))


def policy_of(start: str, model_dir: Any) -> tuple[Any, Any]:
    """(model, peft_config): a fresh adapter, or one that has learned something already."""
    if start == "fresh":
        return str(model_dir), LORA
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    policy = get_peft_model(base, LORA)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return policy, None


def grpo(model_dir: Any, tokenizer: Any, folder: Any) -> Any:
    return build(GRPOTrainer, GRPOConfig(**settings(folder)), str(model_dir), tokenizer, peft_config=LORA)


STARTS = [("live", "fresh"), ("ema", "fresh"), ("base", "fresh"), ("base", "given")]
CASES = [
    pytest.param(trainer, kind, start, id=f"{name}-{kind}-{start}")
    for name, trainer in contract.trainers().items()
    for kind, start in STARTS
    if kind in contract.teachers_of(trainer)
]


@pytest.mark.parametrize(("trainer", "kind", "start"), CASES)
def test_what_is_sent_is_what_grpo_would_send(kind, start, trainer, model_dir, tokenizer, tmp_path):
    chosen = {"learning_rate": 0.02, "teacher_model_kind": kind, "teacher_update_rate": 0.3}
    given = distill_settings(tmp_path, **contract.own_settings(trainer), **chosen)
    args = trainer.config_class(**contract.read_by(trainer, given))
    model, peft_config = policy_of(start, model_dir)
    made = build(trainer, args, model, tokenizer, peft_config=peft_config)
    assert (REFERENCE_ADAPTER in made.model.peft_config) == (start == "given")
    sync = Sync(made)
    made.add_callback(sync)
    made.train()
    assert len(sync.sent) == 2
    plain = grpo(model_dir, tokenizer, tmp_path)
    untrained = sent(plain)
    assert untrained.keys() == dict(AutoModelForCausalLM.from_pretrained(model_dir).named_parameters()).keys()
    for adapter, weights in sync.sent:
        set_peft_model_state_dict(plain.model, adapter)
        expected = sent(plain)
        assert weights.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, atol=1e-6, rtol=0)
        moved = max((tensor - untrained[name]).abs().max().item() for name, tensor in expected.items())
        assert moved > 1e-3, "the adapter adds nothing that could be missed"
    assert made.model.active_adapters == ["default"]


@pytest.mark.parametrize("start", ["fresh", "given"])
def test_an_adapter_sent_alone_is_the_trained_one(start, model_dir, tokenizer, tmp_path):
    """As `AsyncGRPOTrainer` sends it (trl#6007): the one active adapter, and nothing of the `base` teacher's copy."""
    trainer = contract.trainers()["RLRTTrainer"]
    chosen = {"learning_rate": 0.02, "teacher_model_kind": "base", "context": "gold"}
    model, peft_config = policy_of(start, model_dir)
    args = trainer.config_class(**distill_settings(tmp_path / "run", **chosen))
    made = build(trainer, args, model, tokenizer, peft_config=peft_config)
    made.train()
    assert validate_lora_for_vllm_sync(made.model).r == LORA.r
    plain = grpo(model_dir, tokenizer, tmp_path / "grpo")
    set_peft_model_state_dict(plain.model, get_peft_model_state_dict(made.model))
    files = []
    for name, policy in (("ours", made.model), ("plain", plain.model)):
        save_lora_adapter(policy, Accelerator(cpu=True), "default", str(tmp_path / name))
        files.append(load_file(tmp_path / name / "adapter_model.safetensors"))
    ours, plains = files
    assert ours.keys() == plains.keys()
    assert all(torch.equal(tensor, plains[name]) for name, tensor in ours.items())
    assert max(tensor.abs().max().item() for name, tensor in ours.items() if "lora_B" in name) > 1e-3
