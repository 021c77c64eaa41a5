"""Work inside a wrapped model's forward."""

from collections.abc import Callable
from typing import Any

from peft import PeftModel
from torch import nn


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
