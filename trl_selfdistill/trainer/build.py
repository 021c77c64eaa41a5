"""From a configuration to the parts of a trainer. Refuses what cannot work."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import nn

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.context.builders import resolve_function
from trl_selfdistill.context.collator import PrivilegedContextCollator
from trl_selfdistill.context.encoding import chat_markers
from trl_selfdistill.context.rollout import Rollout
from trl_selfdistill.context.templates import Prompt
from trl_selfdistill.maths import paced_weights
from trl_selfdistill.settings import ROW_WEIGHTS
from trl_selfdistill.teachers.adapter import base_adapter_teacher
from trl_selfdistill.teachers.base import FrozenCopyTeacher, LiveTeacher, Teacher, frozen_copy
from trl_selfdistill.teachers.ema import EMATeacher


def make_collator(
    args: SelfDistillConfig,
    tokenizer: Any,
    templates: dict[str, str],
    chat_template: Any,
    prompts: list[Prompt],
    *,
    is_vlm: bool,
    tools: Any,
    model_config: Any,
) -> PrivilegedContextCollator:
    """The collator that a configuration asks for, tried on `prompts`: what it cannot place is refused before training.

    Args:
        args: the configuration.
        tokenizer: the policy's tokenizer.
        templates: the algorithm's own teacher templates by placement.
        chat_template: a chat template in place of the tokenizer's.
        prompts: the first one of each dataset.
        is_vlm: whether the policy reads images.
        tools: the tool schemas of the run.
        model_config: the policy's configuration, which tells its window.

    Raises `ValueError` where the context cannot be placed.
    """
    placement: Any = args.context_placement
    if is_vlm and placement == "user":
        raise ValueError(
            "context_placement='user' cannot rewrite prompts of a vision-language model, whose user turns hold images. "
            "Set context_placement='system', which leaves the prompt as it is."
        )
    template = templates.get(placement)
    plain = [prompt for prompt in prompts if isinstance(prompt, str)]
    if plain and placement == "user":
        check_no_markers(tokenizer, plain)
        if templates:  # plain text comes last: the model continues it
            template = templates["system"] + "\n\n{prompt}"
    own_kwargs = args.teacher_chat_template_kwargs
    template_kwargs: Any = args.chat_template_kwargs if own_kwargs is None else own_kwargs
    window = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    collator = PrivilegedContextCollator(
        tokenizer,
        teacher_template=template if args.teacher_template is None else args.teacher_template,
        context_placement=placement,
        max_context_tokens=args.max_context_tokens,
        teacher_chat_template_kwargs=template_kwargs,
        chat_template=chat_template,
        content_blocks=is_vlm,
        window=window,
    )
    # The tokens of a prompt with images come from the processor. They stay as they are.
    own_ids = [[tokenizer.eos_token_id]] if is_vlm else None
    for prompt in prompts:
        collator([prompt], ["A context."], feedback=["Feedback."], prompt_ids=own_ids, tools=[tools])
    return collator


def check_no_markers(tokenizer: Any, prompts: list[str]) -> None:
    """Raise `ValueError` for plain text that has been through a chat template: its user turn is closed already."""
    found = sorted({marker for prompt in prompts for marker in chat_markers(tokenizer, prompt)})
    if found:
        raise ValueError(
            f"context_placement='user' cannot rewrite plain text that holds chat markers ({', '.join(found)}): the "
            "context would land outside the user's turn. Give conversational prompts "
            "([{'role': 'user', 'content': ...}]), to which the trainer applies the chat template, or set "
            "context_placement='system', which puts the context before the prompt."
        )


def make_teacher(args: SelfDistillConfig, policy: nn.Module, accelerator: Accelerator, *, preloaded: bool) -> Teacher:
    """The teacher that a `SelfDistillConfig` asks for, made before the policy is wrapped.

    Args:
        args: the configuration.
        policy: the model.
        accelerator: what will split the policy's weights, if anything does.
        preloaded: whether the policy came with an adapter of its own.

    Raises `ValueError` where the kind cannot be right.
    """
    kind, sharding = args.teacher_model_kind, _sharding(accelerator)
    if kind == "live":
        return LiveTeacher()
    if kind == "ema":
        if sharding in ("ZeRO-3", "FSDP1"):
            raise ValueError(
                f"teacher_model_kind='ema' is not supported under {sharding}, which hides the parameters that the "
                "average needs. Use FSDP2, ZeRO-2 or DDP, or teacher_model_kind='live'."
            )
        dtype = torch.float32 if args.teacher_ema_dtype == "float32" else torch.bfloat16
        return EMATeacher(policy, rate=args.teacher_update_rate, sync_steps=args.teacher_sync_steps, dtype=dtype)
    if isinstance(policy, PeftModel):
        # ZeRO-3 has partitioned the weights by now; under FSDP, processes other than the first may have none yet.
        can_run = sharding not in ("ZeRO-3", "FSDP1", "FSDP2")
        return base_adapter_teacher(policy, preloaded=preloaded, can_run=can_run)
    if sharding is not None:
        raise ValueError(
            f"teacher_model_kind='base' without PEFT keeps a second copy of the model, which {sharding} would not "
            "shard. Use teacher_model_kind='live', or train an adapter (peft_config), whose base is free."
        )
    return FrozenCopyTeacher(frozen_copy(policy))


def _sharding(accelerator: Any) -> str | None:
    """How the policy's weights will be split: "ZeRO-2", "ZeRO-3", "FSDP1", "FSDP2", or `None` for not at all."""
    if accelerator.state.deepspeed_plugin is not None:
        return f"ZeRO-{accelerator.state.deepspeed_plugin.zero_stage}"
    if accelerator.distributed_type == DistributedType.FSDP:
        return f"FSDP{accelerator.state.fsdp_plugin.fsdp_version}"
    return None


def make_row_weight(name: str, *, assesses: bool) -> Callable[[Rollout], float]:
    """The row weight that `row_weight=name` asks for: a function `Rollout -> float`.

    Args:
        name: "none", "paced" or a dotted path.
        assesses: whether there are rewards that tell correctness.

    Raises `ValueError` where it cannot be had.
    """
    if name == "none":
        return lambda rollout: 1.0
    if name == "paced":
        if not assesses:
            raise ValueError(
                "row_weight='paced' weighs a prompt by the share of its rollouts that are correct. Give reward_funcs."
            )
        return paced
    return resolve_function(name, field="row_weight", names=list(ROW_WEIGHTS))


def paced(rollout: Rollout) -> float:
    """PACED's weight of a rollout, 4 p (1 - p) with the pass rate p of its group; 1 where none was assessed."""
    if rollout.pass_rate is None:
        return 1.0
    return paced_weights(torch.tensor([rollout.pass_rate])).item()
