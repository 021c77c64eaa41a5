"""The frozen start of a PEFT policy as its teacher."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from torch import nn

from trl_selfdistill.teachers.base import FrozenCopyTeacher, Teacher, scoring_mode

REFERENCE_ADAPTER = "ref"
"""The name under which GRPO keeps a copy of a preloaded adapter; used here for the same thing."""

_STARTS_AS_BASE = (True, "gaussian", "eva", "orthogonal")
"""Values of LoRA's `init_lora_weights` with which a fresh adapter adds nothing and leaves the base weights alone."""

PROBE_TOLERANCE = 1e-5
"""Largest difference of logits, in units of the largest logit (at least 1), that still counts as rounding of float32.

No more is allowed in lower precision. There, an adapter that adds nothing gives the very same logits, and any other is
safer as a copy, which always gives the start's own logits back.
"""


class AdapterTeacher(Teacher):
    """The frozen start of a PEFT policy: its adapter off, or the copy of the adapter that it was loaded with."""

    def __init__(self, model: PeftModel, adapter: str | None) -> None:
        self._model = model
        self._adapter = adapter

    @contextmanager
    def weights(self, policy: nn.Module) -> Iterator[nn.Module]:
        if self._adapter is None:
            with self._model.disable_adapter():
                yield policy
            return
        active: Any = self._model.active_adapter
        self._model.set_adapter(self._adapter)
        try:
            yield policy
        finally:
            self._model.set_adapter(active)
            freeze_adapter(self._model, self._adapter)


def base_adapter_teacher(model: PeftModel, *, preloaded: bool, can_run: bool = True) -> Teacher:
    """The `base` teacher of a PEFT policy.

    A fresh adapter is simply switched off. An adapter that came with the model belongs to the base: a frozen copy of it
    is kept under `REFERENCE_ADAPTER`, shared with GRPO's own reference where `beta` made one. So is an adapter whose
    initialisation changes the policy (PiSSA, LoftQ, FourierFT, random): switching it off does not give the start back.

    Args:
        model: the policy.
        preloaded: whether it came with an adapter of its own.
        can_run: whether a forward is possible now, to see what a fresh adapter does. If not, only LoRA with an exact
            initialisation is switched off; of every other kind a copy is kept.

    Raises `ValueError` when more than the adapter is trained, for then switching it off does not give the base back.
    """
    if model.active_peft_config.is_prompt_learning:
        if preloaded:
            raise ValueError(
                "teacher_model_kind='base' keeps no copy of a prompt or prefix that the model came with. Use "
                "teacher_model_kind='live', or pass the base model and a peft_config."
            )
        return FrozenCopyTeacher(model.get_base_model())  # the trained part is outside it
    others = [n for n, p in model.named_parameters() if p.requires_grad and model.prefix not in n]
    if others:
        raise ValueError(
            f"teacher_model_kind='base' switches the adapter off, but {others[0]!r} (and {len(others) - 1} more) are "
            "trained outside it. Drop `modules_to_save`, `bias` and trainable base weights from the PEFT config, or "
            "use teacher_model_kind='live'."
        )
    active: Any = model.active_adapter
    config = model.peft_config[active]
    if not preloaded and starts_as_base(model, config, can_run=can_run):
        return AdapterTeacher(model, None)
    if REFERENCE_ADAPTER not in model.peft_config:
        with torch.random.fork_rng(devices=[]):  # PEFT draws weights on the CPU, which must not shift the rollouts
            model.add_adapter(REFERENCE_ADAPTER, plainly_initialised(config))
    for name, parameter in adapter_parameters(model, active):
        # With the precision too: TRL casts the adapters of a quantised model to bfloat16.
        model.get_parameter(reference_name(name, active)).data = parameter.data.clone()
    for name, buffer in model.named_buffers():
        if active in name.split("."):
            model.get_buffer(reference_name(name, active)).data = buffer.data.clone()
    freeze_adapter(model, REFERENCE_ADAPTER)
    return AdapterTeacher(model, REFERENCE_ADAPTER)


def starts_as_base(model: PeftModel, config: PeftConfig, *, can_run: bool) -> bool:
    """Whether the fresh adapter of `model` adds nothing, so that switching it off gives the start back."""
    if isinstance(config, LoraConfig):
        return config.init_lora_weights in _STARTS_AS_BASE
    return can_run and adapter_difference(model) <= PROBE_TOLERANCE


def adapter_difference(model: PeftModel) -> float:
    """Largest difference of logits with the adapter on and off, over the largest logit (at least 1); infinite for NaN.

    One forward each of a few tokens, without gradient and dropout. Modes and random numbers stay as they are.
    """
    embeddings: Any = model.get_input_embeddings()
    device, vocabulary = embeddings.weight.device, embeddings.weight.size(0)
    ids = torch.arange(8, device=device).mul_(max(1, vocabulary // 8)).remainder_(vocabulary).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    with torch.random.fork_rng([device] if device.type == "cuda" else []), scoring_mode(model):
        on = model(**inputs).logits.float()
        with model.disable_adapter():
            off = model(**inputs).logits.float()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in trained)
    return ((on - off).abs().max() / off.abs().max().clamp(min=1.0)).nan_to_num(nan=torch.inf).item()


def plainly_initialised(config: PeftConfig) -> PeftConfig:
    """`config` for an adapter that is filled by hand: PiSSA and its kin would change the base weights once more."""
    config = copy.copy(config)
    if isinstance(config, LoraConfig):
        config.init_lora_weights = True
    return config


def reference_name(name: str, adapter: str) -> str:
    """The name of the same tensor in the reference adapter."""
    return ".".join(REFERENCE_ADAPTER if part == adapter else part for part in name.split("."))


def adapter_parameters(model: PeftModel, adapter: str) -> list[tuple[str, nn.Parameter]]:
    """The parameters of one adapter: `...lora_A.default.weight`, but `...lora_embedding_A.default`."""
    return [(name, parameter) for name, parameter in model.named_parameters() if adapter in name.split(".")]


def freeze_adapter(model: PeftModel, adapter: str) -> None:
    """Make sure that no optimizer ever touches `adapter` (`set_adapter` makes the adapter it activates trainable)."""
    for _, parameter in adapter_parameters(model, adapter):
        parameter.requires_grad_(False)
