"""Matrix products with fp32 results, whatever the operands. fp32 logits are not optional: teacher and student nearly
agree, so the gradient p_s - p_t is a cancellation, and logits rounded to bf16 leave more error than gradient."""

import torch
from torch import Tensor

CUDA_CHUNK_BYTES = 3 * 2**29  # 1.5 GiB: 1,024 rows at V = 152k, enough for the V x H gradient GEMM to be compute bound
CPU_CHUNK_ROWS = 256


def chunk_rows(chunk_bytes: int | None, vocab: int, device: torch.device) -> int:
    """Rows of a token chunk: 10 bytes per row and entry (two fp32 logits, one bf16 gradient)."""
    if chunk_bytes is None and device.type == "cpu":
        return CPU_CHUNK_ROWS
    return max(1, (CUDA_CHUNK_BYTES if chunk_bytes is None else chunk_bytes) // (10 * vocab))


def operand_dtypes(*tensors: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """(dtype the operands are rounded to, dtype the matrix product reads).

    The first follows autocast like a call of the LM head would. The second is the first where the product can still
    return fp32 (bf16 on CUDA); elsewhere the operands are cast up. fp16 is cast up as well: `p_s - p_t` times a weight
    of 1 / tokens underflows there.
    """
    rounded = tensors[0].dtype
    for tensor in tensors[1:]:
        rounded = torch.promote_types(rounded, tensor.dtype)
    device = tensors[0].device.type
    if rounded is not torch.float64 and torch.is_autocast_enabled(device):
        rounded = torch.get_autocast_dtype(device)
    if rounded is torch.float64 or (rounded is torch.bfloat16 and device == "cuda"):
        return rounded, rounded
    return rounded, torch.float32


def mm_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out = a @ b with `out` at least as wide as the operands."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def addmm_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a @ b, accumulated in the dtype of `out`."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
