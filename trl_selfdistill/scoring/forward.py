"""Work inside a wrapped model's forward."""

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn


def inside_forward(wrapper: nn.Module, inner: nn.Module, function: Callable[..., Any], **inputs: Any) -> Any:
    """Call `function(**inputs)` from within `wrapper`'s forward.

    DDP, FSDP and ZeRO-3 do their work in hooks around the wrapper's forward, so hidden states and the head must be
    computed in there; so does PEFT, which puts the tokens of prompt and prefix tuning in front. `inner` is the module
    that `wrapper` wraps in the end, and whose forward it calls; it may be `wrapper` itself.
    """
    patched = "forward" in vars(inner)
    original = inner.forward

    def redirected(*args: Any, **kwargs: Any) -> Any:
        inner.forward = original  # the function may call it
        return function(*args, **kwargs)

    inner.forward = redirected
    try:
        return wrapper(**inputs)
    finally:
        if patched:
            inner.forward = original
        else:
            del inner.forward


def causal_lm(model: nn.Module) -> Any:
    """The language model itself, out of its PEFT wrapper. Adapters in its layers stay active."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def keep_values(exact: Tensor, hooked: Tensor) -> Tensor:
    """The values of `exact` with the gradient going through `hooked`, what a wrapper made of it on the way out.

    The gradient has to take the way of the wrapper's hooks (FSDP2, ZeRO-3). The values need not: under mixed precision
    FSDP2 rounds what a model returns to bfloat16.
    """
    if hooked.dtype == exact.dtype:
        return hooked
    return _ValuesOf.apply(exact.detach(), hooked)  # pyright: ignore[reportReturnType]


class _ValuesOf(torch.autograd.Function):
    """No sum of differences, which has no value where a log-probability is -inf."""

    @staticmethod
    def forward(ctx, exact, hooked):
        ctx.dtype = hooked.dtype
        return exact.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None, gradient.to(ctx.dtype)
