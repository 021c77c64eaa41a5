"""Errors of the two ops at their edge."""

from torch import Tensor

IMPLS = ("auto", "reference", "torch", "liger")


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
