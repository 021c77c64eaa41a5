"""What `training_phase.py` compares: one model, the same scripted rollouts, and the trainers."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.sdft import SDFTConfig, SDFTTrainer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

from trl_selfdistill import AntiSDConfig, AntiSDTrainer, OPSDConfig, OPSDTrainer, RLRTConfig, RLRTTrainer
from trl_selfdistill.cli.flops import Shape, Sizes, step_flops, teacher_flops

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from tiny_policy import build_tokenizer

SMOLLM2 = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
SMOLLM2 |= {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
QWEN3 = {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28}
QWEN3 |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
TOY = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
TOY |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
MODELS: dict[str, tuple[type, dict[str, int]]] = {"smollm2": (LlamaConfig, SMOLLM2), "qwen3-1.7b": (Qwen3Config, QWEN3)}
WARM_UP = 8  # completion tokens of the step that is not measured
RANK = 16  # of LoRA
LETTERS = "abcdefghijklmnopqrstuvwxyz"

OURS = {"teacher_template": "{context}{prompt}"}
SDPO = {
    # The context comes in as feedback, since a peer's completion would have its own length.
    "include_environment_feedback": True,
    "use_successful_as_teacher": False,
    "feedback_template": "{feedback_raw}",
    "reprompt_template": "{feedback}{prompt}",
    "teacher_model_kind": "live",
}
SDFT = {"teacher_prompt_template": "{privileged_context}{prompt}", "teacher_model_kind": "base"}
VARIANTS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "grpo": (GRPOTrainer, GRPOConfig, {}),
    "rlrt": (RLRTTrainer, RLRTConfig, OURS),
    "rlrt-skip": (RLRTTrainer, RLRTConfig, {**OURS, "skip_unused_scores": True}),
    "antisd": (AntiSDTrainer, AntiSDConfig, OURS),
    "opsd": (OPSDTrainer, OPSDConfig, OURS),
    "trl-sdpo": (SDPOTrainer, SDPOConfig, {**SDPO, "distillation_mode": "sampled_token"}),
    "trl-sdpo-full": (SDPOTrainer, SDPOConfig, {**SDPO, "distillation_mode": "full_logits"}),
    "trl-sdft": (SDFTTrainer, SDFTConfig, {**SDFT, "distillation_mode": "sampled_token", "distillation_alpha": 1.0}),
    "trl-sdft-full": (SDFTTrainer, SDFTConfig, {**SDFT, "distillation_mode": "full_logits"}),
}
# Methods whose time is a part of the step.
PARTS = {
    "grpo": {"loss": "_compute_loss"},
    "rlrt": {"teacher": "apply_teacher", "loss": "_compute_loss"},
    "rlrt-skip": {"teacher": "apply_teacher", "loss": "_compute_loss"},
    "antisd": {"teacher": "apply_teacher", "loss": "_compute_loss"},
    "opsd": {"teacher in the loss": "_teacher_side", "loss": "_compute_loss"},
}


class Rollouts:
    """The same prompt and completions for every trainer: long ones for the step that counts."""

    def __init__(self, tokenizer: Any, shape: Shape) -> None:
        generator = torch.Generator().manual_seed(0)
        sizes = (shape.prompt, shape.context, *[shape.completion] * shape.rollouts)
        codes = [torch.randint(len(LETTERS), (size,), generator=generator).tolist() for size in sizes]
        texts = ["".join(LETTERS[code] for code in row) for row in codes]
        ids = [tokenizer(text)["input_ids"] for text in texts]
        if tuple(map(len, ids)) != sizes:
            raise RuntimeError("The tokenizer must make one token of each letter.")
        self.prompt, self.context = texts[:2]
        self.prompt_ids, self.completion_ids = ids[0], ids[2:]
        self._end = [tokenizer.eos_token_id]
        self._steps = 0

    def next(self) -> list[list[int]]:
        """The completions of the next step. They end, so that none counts as truncated."""
        self._steps += 1
        first = self._steps == 1
        return [(ids[:WARM_UP] if first else ids)[:-1] + self._end for ids in self.completion_ids]

    def for_grpo(self, prompts: list[Any], *_: Any, **__: Any) -> dict[str, Any]:
        return {"prompt_ids": [self.prompt_ids] * len(prompts), "completion_ids": self.next(), "logprobs": None}


def model_of(a: argparse.Namespace) -> PreTrainedModel:
    torch.manual_seed(0)
    config_class, numbers = MODELS[a.model]
    config = config_class(**(TOY if a.toy else numbers), tie_word_embeddings=True, max_position_embeddings=8192)
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, a.dtype))


def sizes_of(a: argparse.Namespace) -> Sizes:
    """Counted from the weights. LoRA adds r times (inputs + outputs) to each matrix in the layers."""
    with torch.device("meta"):
        model = model_of(a)
    matrices = [p for name, p in model.model.layers.named_parameters() if p.ndim == 2]
    config = model.config
    return Sizes(
        body=sum(matrix.numel() for matrix in matrices),
        adapter=sum(RANK * sum(matrix.shape) for matrix in matrices),
        layers=config.num_hidden_layers,
        attention=config.num_attention_heads * config.head_dim,
        hidden=config.hidden_size,
        vocab=config.vocab_size,
    )


def counted(a: argparse.Namespace, variant: str, kind: str, shape: Shape, *, shared: bool) -> int:
    sizes, lora = sizes_of(a), kind == "lora"
    common = {"lora": lora, "checkpointing": a.checkpointing, "shared_teacher": shared}
    if variant == "rlrt-skip":  # every second rollout is wrong
        scored = replace(shape, rollouts=shape.rollouts // 2)
        return step_flops(sizes, shape, teacher=False, **common) + sum(
            teacher_flops(sizes, scored, lora=lora, shared=shared)
        )
    return step_flops(sizes, shape, teacher=variant != "grpo", **common)


def trainer_of(a: argparse.Namespace, variant: str, kind: str, shape: Shape, folder: str) -> Any:
    trainer_class, config_class, special = VARIANTS[variant]
    tokenizer = build_tokenizer()
    rollouts = Rollouts(tokenizer, shape)
    longest = shape.prompt + shape.context + shape.completion
    settings = {
        "output_dir": folder,
        "use_cpu": a.device == "cpu",
        "bf16": a.device == "cuda",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_steps": 2,
        "per_device_train_batch_size": shape.rollouts,
        "num_generations": shape.rollouts,
        "max_completion_length": shape.completion + 1,
        "gradient_checkpointing": a.checkpointing,
        **special,
    }
    if variant.startswith("trl-"):
        settings["max_prompt_length"] = longest
    rows = {"prompt": [rollouts.prompt] * 8, "privileged_context": [rollouts.context] * 8}
    with torch.device(a.device):  # a CPU takes half a minute for the random weights of the larger model
        model = model_of(a)
    if variant.startswith("trl-sdft") and kind == "full":  # TRL loads the start once more, from where it came
        model.save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    arguments: dict[str, Any] = {
        "model": model,
        "args": config_class(**settings),
        "train_dataset": Dataset.from_dict(rows),
        "processing_class": tokenizer,
        "peft_config": LoraConfig(r=RANK, target_modules="all-linear") if kind == "lora" else None,
    }
    if not variant.startswith("trl-sdft"):
        arguments["reward_funcs"] = lambda completions, **_: [float(i % 2 == 0) for i in range(len(completions))]
    if not variant.startswith("trl-"):
        arguments["rollout_func"] = rollouts.for_grpo
    if issubclass(trainer_class, RLRTTrainer | AntiSDTrainer | OPSDTrainer):
        arguments["context_builder"] = lambda rollout: rollouts.context
    trainer = trainer_class(**arguments)
    if variant.startswith("trl-"):  # they take no rollout function
        trainer._generate = lambda prompt_ids: ([rollouts.prompt_ids] * len(prompt_ids), rollouts.next())
    return trainer
