"""Errors of the two ops at their edge."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

IMPLS = ("auto", "reference", "torch", "liger")
STREAMS = ("hidden", "student_hidden", "teacher_hidden")
PER_TOKEN = ("targets", "token_weights")
TENSORS = (*STREAMS, "weight", "bias", "teacher_weight", "teacher_bias", *PER_TOKEN)

P = ParamSpec("P")
R = TypeVar("R")


def checked(op: Callable[P, R]) -> Callable[P, R]:
    """The op behind `check_kinds` and `check_arguments`, and hidden from compilers.

    A decorator, so that it comes before the checks of the annotations, which are on in tests: there a wrong argument
    must raise what it raises for a user. A compiler would only unroll the loops over chunks.
    """
    signature = inspect.signature(op)

    @functools.wraps(op)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        check_kinds({k: given[k] for k in TENSORS if k in given}, optional=_optional(signature))
        per_token = {name: given[name] for name in PER_TOKEN if name in given}
        streams = [given[name] for name in STREAMS if name in given]
        check_arguments(given["impl"], given["chunk_bytes"], given["weight"], given["bias"], per_token, *streams)
        return op(*args, **kwargs)

    return cast("Callable[P, R]", torch.compiler.disable(call))


def _optional(signature: inspect.Signature) -> set[str]:
    return {name for name, parameter in signature.parameters.items() if parameter.default is None}


def check_kinds(given: Mapping[str, Any], optional: set[str]) -> None:
    """Raise `ValueError` for what is no tensor, or one of the wrong kind of number."""
    for name, value in given.items():
        if value is None and name in optional:
            continue
        if isinstance(value, nn.Module):
            raise ValueError(
                f"{name} must be a tensor, got the module {type(value).__name__}: pass lm_head.weight, or use "
                "`with output_head(model) as head` and pass head.weight."
            )
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(value).__name__}.")
        if name == "targets":
            if value.dtype is torch.bool or value.is_floating_point() or value.is_complex():
                raise ValueError(f"targets must be token ids of an integer dtype, got {value.dtype}.")
        elif name != "token_weights" and not value.is_floating_point():
            raise ValueError(f"{name} must have a floating-point dtype, got {value.dtype}.")


def targets_in_range(targets: Tensor, vocab: int, way_out: str) -> Tensor:
    """Targets as the back ends read them. `ValueError` where one is no entry of the vocabulary.

    Only on a CPU: elsewhere the check would wait for the device. There `liger` gives NaN for such a token, and torch's
    own indexing stops with an assertion of the device. Neither reads outside the row.
    """
    if targets.device.type == "cpu":
        wrong = targets[(targets < 0) | (targets >= vocab)]
        if len(wrong):
            raise ValueError(f"targets must lie in [0, {vocab}), got {wrong[0].item()}: {way_out}.")
    return targets.long().contiguous()


def check_arguments(
    impl: str,
    chunk_bytes: int | None,
    weight: Tensor,
    bias: Tensor | None,
    per_token: dict[str, Tensor | None],
    *streams: Tensor,
) -> None:
    """Raise `ValueError` for arguments that do not go together."""
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(IMPLS)}, got {impl!r}.")
    if chunk_bytes is not None and chunk_bytes <= 0:
        raise ValueError(f"chunk_bytes must be positive or None for the default, got {chunk_bytes}.")
    if weight.ndim != 2 or any(stream.ndim != 2 or stream.shape[1] != weight.shape[1] for stream in streams):
        shapes = ", ".join(str(tuple(stream.shape)) for stream in streams)
        raise ValueError(
            f"Hidden states must be (N, H) and the head (V, H), got {shapes} and {tuple(weight.shape)}. Flatten "
            "batch and time first; gather a head sharded by FSDP2 or ZeRO-3 with `output_head`."
        )
    if any(stream.shape != streams[0].shape for stream in streams):
        raise ValueError(f"Student and teacher must have the same tokens, got {[tuple(s.shape) for s in streams]}.")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have one entry per row of the head {tuple(weight.shape)}, got {tuple(bias.shape)}."
        )
    for name, value in per_token.items():
        if value is not None and value.shape != streams[0].shape[:1]:
            raise ValueError(f"{name} must be ({len(streams[0])},), got {tuple(value.shape)}.")


def check_teacher_head(
    weight: Tensor, bias: Tensor | None, teacher_weight: Tensor | None, teacher_bias: Tensor | None
) -> tuple[Tensor, Tensor | None] | None:
    """(weight, what to add to the bias) of a teacher with a head of its own, `None` where both share one."""
    if teacher_weight is None:
        if teacher_bias is not None:
            raise ValueError("teacher_bias goes with teacher_weight: without it the teacher has the student's head.")
        return None
    if teacher_weight.shape != weight.shape or (bias is None) != (teacher_bias is None):
        raise ValueError(
            f"The teacher's head must be like the student's: weights {tuple(teacher_weight.shape)} and "
            f"{tuple(weight.shape)}, and a bias on both sides or on none."
        )
    if bias is None or teacher_bias is None:
        return teacher_weight.detach(), None
    extra = (teacher_bias.detach() - bias.detach()).nan_to_num(nan=0.0)  # -inf on both sides stays -inf
    return teacher_weight.detach(), extra
