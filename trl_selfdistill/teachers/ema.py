"""A teacher whose weights follow the student's as an exponential moving average, kept in float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback

from trl_selfdistill.ops import Head, output_head
from trl_selfdistill.teachers.base import Teacher


class EMATeacher(Teacher):
    """theta_T <- (1 - rate) theta_T + rate theta_S, over all weights that are trained (the adapter alone under PEFT).

    Starts at the student's weights. The shadow is float32 by default; in bfloat16, updates below about 1/256 of a
    weight are rounded away.

    For scoring, the shadow is copied into the policy and the policy's own weights are copied back afterwards. That
    costs one more copy of the trained weights for the length of the pass, and is right for plain models, DDP, ZeRO-1
    and 2, and FSDP2, whose sharded parameters are written in place.
    """

    def __init__(self, policy: nn.Module, *, rate: float, sync_steps: int, dtype: torch.dtype = torch.float32) -> None:
        self.rate = rate
        self.sync_steps = sync_steps
        self.shadow = {
            name: parameter.detach().to(dtype, copy=True)
            for name, parameter in _named_parameters(policy)
            if parameter.requires_grad
        }

    @contextmanager
    def weights(self, policy: nn.Module) -> Iterator[nn.Module]:
        parameters = self._parameters(policy)
        own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._write(parameters, self.shadow)
        try:
            yield policy
        finally:
            self._write(self._parameters(policy), own)

    def own_head(self, model: Any) -> Head | None:
        with output_head(model) as head:
            if not model.get_output_embeddings().weight.requires_grad:
                return None
            # A copy: the policy's own weights are written back before the head is used.
            bias = None if head.bias is None else head.bias.detach().clone()
            return replace(head, weight=head.weight.detach().clone(), bias=bias)

    @torch.no_grad()
    def update(self, policy: nn.Module) -> None:
        """One step of the average."""
        for name, parameter in self._parameters(policy).items():
            shadow = self.shadow[name]
            shadow.copy_(shadow.float().lerp_(parameter.detach().float(), self.rate))

    def state(self) -> dict[str, Tensor]:
        """The whole shadow by parameter name, gathered where it is sharded. To be called by every process."""
        return {name: _whole(tensor).cpu() for name, tensor in self.shadow.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take the shadow from `state`. Raises `ValueError` when it is that of another model."""
        unlike = [n for n in self.shadow.keys() | state.keys() if n not in state or n not in self.shadow]
        unlike += [n for n in self.shadow if n in state and state[n].shape != self.shadow[n].shape]
        if unlike:
            raise ValueError(
                f"The checkpoint's EMA teacher does not fit the model: {len(unlike)} parameters are different, the "
                f"first is {sorted(unlike)[0]!r}. Resume with the model and the PEFT config that wrote it."
            )
        for name, tensor in state.items():
            shadow = self.shadow[name]
            self.shadow[name] = _like(tensor.to(shadow.device, shadow.dtype), shadow)

    def _parameters(self, policy: nn.Module) -> dict[str, nn.Parameter]:
        for module in policy.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # some groups keep their weights gathered after a forward: copies, not what is trained
        parameters = {name: p for name, p in _named_parameters(policy) if name in self.shadow}
        assert len(parameters) == len(self.shadow), "the policy's parameters were renamed since the teacher was made"
        for name, parameter in parameters.items():
            # FSDP2 shards the policy after the teacher was made; accelerate may have moved it.
            self.shadow[name] = _like(self.shadow[name].to(parameter.device), parameter)
        return parameters

    @staticmethod
    @torch.no_grad()
    def _write(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


class EMACallback(TrainerCallback):
    """Updates the teacher once every `sync_steps` optimiser steps."""

    def __init__(self, teacher: EMATeacher) -> None:
        self._teacher = teacher

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self._teacher.sync_steps == 0:
            self._teacher.update(model)


def _named_parameters(policy: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """As without FSDP's activation checkpointing, which puts a module of its own around each layer."""
    return ((name.replace(_CHECKPOINT_PREFIX, ""), parameter) for name, parameter in policy.named_parameters())


def _like(tensor: Tensor, example: Tensor) -> Tensor:
    """`tensor`, sharded as `example` is."""
    if isinstance(example, DTensor) and not isinstance(tensor, DTensor):
        return distribute_tensor(tensor, example.device_mesh, example.placements)
    return tensor


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
