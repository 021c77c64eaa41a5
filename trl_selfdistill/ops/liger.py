"""The `liger` back end: the token chunks of `chunked`, with row kernels chosen by Liger's dispatcher.

What is used of Liger: `backends.register_op`, `Capability`, `declare_op_locations` and `dispatch`, which pick the row
kernels (`triton_rows`, or `liger_rows`, which composes Liger's own primitive `jsd_loss_and_grad`);
`ops.utils.calculate_settings` and `device_context` for the launches. Liger's environment variables apply, for example
`LIGER_KERNEL_IMPL_SELFDISTILL_DIVERGENCE_ROWS=liger-jsd`.
"""

import os
from functools import partial

import torch

try:
    from liger_kernel.backends import ImplNotAvailableError, NoImplAvailableError, dispatch
    from liger_kernel.backends.registry import declare_op_locations
except ImportError as error:
    raise ValueError('impl="liger" needs `pip install liger-kernel>=0.8.5`, or pass impl="torch".') from error

from .chunked import RowOps

DIVERGENCE_OP = "selfdistill_divergence_rows"
LOGPS_OP = "selfdistill_logps_rows"

declare_op_locations(DIVERGENCE_OP, (f"{__package__}.triton_rows", f"{__package__}.liger_rows"))
declare_op_locations(LOGPS_OP, (f"{__package__}.triton_rows",))


def _call(op: str, logits: torch.Tensor, *args) -> None:
    if logits.dtype is not torch.float32:
        raise ValueError(f'impl="liger" computes in fp32, got {logits.dtype} inputs: pass impl="torch".')
    try:
        dispatch(op, logits, *args)  # pyright: ignore[reportCallIssue]
    except (ImplNotAvailableError, NoImplAvailableError) as error:
        raise ValueError(f'Liger has no kernel for this device: {error} Pass impl="torch".') from error


def row_ops(device: torch.device) -> RowOps:
    """Raises `ValueError` where Triton kernels cannot run."""
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError('impl="liger" runs Triton kernels and needs a GPU: pass impl="torch" or impl="auto".')
    return RowOps(partial(_call, DIVERGENCE_OP), partial(_call, LOGPS_OP))
