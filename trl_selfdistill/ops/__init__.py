"""Divergence and log-probabilities through one LM head without ever holding (N, V) logits.

Two public functions; the back ends behind `impl`:

| impl | what it is | where |
|---|---|---|
| `reference` | plain torch, full logits, autograd: the definition | anywhere, small sizes |
| `torch` | token chunks, gradient in the forward pass | CPU and anything torch runs on |
| `liger` | the same loop with row kernels chosen by Liger's dispatcher | CUDA (or Triton's interpreter) |

`linear_logps` with a trainable head makes its gradient in the backward pass (`logps` says why).
"""

from .api import linear_divergence, linear_logps
from .head import Head, output_head
from .types import DivergenceOutput

__all__ = ["DivergenceOutput", "Head", "linear_divergence", "linear_logps", "output_head"]
