"""A base in 4 bits that keeps its gradients on a CPU."""

from torch import nn
from transformers.utils import is_bitsandbytes_available


def keep_gradients(model: nn.Module) -> None:
    """Have bitsandbytes compute with 4-bit weights as they were made.

    On CPUs with AVX512-BF16 it packs them anew at the first forward in evaluation mode, and a packed layer gives no
    gradient to what lies before it, in training too (0.50). GPUs do nothing of the kind.
    """
    if not is_bitsandbytes_available():
        return
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
