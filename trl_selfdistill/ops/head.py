"""The output head of a causal LM as plain tensors, and what its config says happens to the logits afterwards.

The one place that knows about sharded and wrapped heads: FSDP2 (`DTensor`), ZeRO-3, tied embeddings, PEFT.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor

# Config entries of transformers' models by what they do to the logits. Gemma and others cap; Cohere, Muse and
# Falcon-H1 multiply; Granite, MiniCPM3 and Inkling divide (the last two the hidden states: the same without a bias).
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")
MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
MULTIPLIES_BY_LOGITS_SCALING = ("hyperclovax", "hyperclovax_vision_v2")
IGNORES_LOGIT_SCALE = ("mpt",)  # the config has the entry, the model never reads it


@dataclass(frozen=True, eq=False)
class Head:
    """Arguments `weight`, `bias`, `logit_scale` and `softcap` of the ops."""

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None
    logit_scale: float
    softcap: float | None


@contextmanager
def output_head(model: Any) -> Iterator[Head]:
    """Yield the `Head` of a causal LM (`get_output_embeddings()` and `config`), gathered for the length of the block.

    Gradients reach the parameter: the backward of an FSDP2 gather reduce-scatters, and under ZeRO-3 the tensor is the
    parameter itself. ZeRO-3 partitions it again at the end of the block, so compute the loss inside; what needs the
    head in the backward pass (`linear_logps`) gathers it again.

    Args:
        model: the causal LM itself, not its PEFT wrapper.

    Raises:
        ValueError: there is no head, PEFT adapts it, or it is not a plain floating-point (V, H) matrix.
    """
    module = model.get_output_embeddings()
    if module is None:
        raise ValueError(f"{type(model).__name__} has no output embeddings: a causal LM with an LM head is needed.")
    # A head in `modules_to_save` is a copy: its `weight` is the copy's, or the original's while the adapter is off.
    if type(module).__module__.partition(".")[0] == "peft" and not isinstance(module, ModulesToSaveWrapper):
        raise ValueError(
            "The LM head is adapted by PEFT, and reading its weight would leave the adapter out. Remove it from "
            "target_modules and trainable_token_indices (modules_to_save can hold it), or merge the adapter."
        )
    if getattr(model.config.get_text_config(), "unpadded_vocab_size", None) is not None:
        raise ValueError("The model cuts its logits to unpadded_vocab_size, which the fused ops do not support.")
    weight, bias = module.weight, getattr(module, "bias", None)
    with zero3_gathered(weight, bias):
        weight, bias = _full(weight), None if bias is None else _full(bias)
        if weight.ndim != 2 or not weight.is_floating_point():
            raise ValueError(
                f"The LM head must be a floating-point (V, H) matrix, got {weight.dtype} {tuple(weight.shape)}. Keep "
                "it out of the quantisation (llm_int8_skip_modules)."
            )
        yield Head(weight, bias, *logit_settings(model.config))


def logit_settings(config: Any) -> tuple[float, float | None]:
    """(logit_scale, softcap) of a transformers config; (1.0, None) where the model leaves the logits alone."""
    config = config.get_text_config()
    softcap = _first(config, SOFTCAPS)
    multiplier = None if config.model_type in IGNORES_LOGIT_SCALE else _first(config, MULTIPLIERS)
    divisor = _first(config, DIVISORS)
    scale = 1.0 if multiplier is None else multiplier
    if divisor is not None:
        scale = scale * divisor if config.model_type in MULTIPLIES_BY_LOGITS_SCALING else scale / divisor
    return scale, softcap


def _first(config: Any, names: tuple[str, ...]) -> float | None:
    # A config only has the entries of its own model.
    return next((float(value) for name in names if (value := getattr(config, name, None)) is not None), None)


@contextmanager
def zero3_gathered(*params: Any) -> Iterator[None]:
    """Make parameters that ZeRO-3 has partitioned whole for the length of the block; leave others, and None, alone."""
    # `ds_id` is DeepSpeed's own mark of a partitioned parameter.
    managed = [p for p in params if p is not None and hasattr(p, "ds_id")]
    if not managed:
        yield
        return
    import deepspeed  # pyright: ignore[reportMissingImports]
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus  # pyright: ignore[reportMissingImports]

    # A tied head may still be gathered for the embeddings: partitioning it here would pull it from under them.
    partitioned = [p for p in managed if p.ds_status != ZeroParamStatus.AVAILABLE]
    with deepspeed.zero.GatheredParameters(partitioned) if partitioned else nullcontext():
        yield


def _full(tensor: Any) -> Tensor:
    if torch.distributed.is_available():
        from torch.distributed.tensor import DTensor

        if isinstance(tensor, DTensor):
            return tensor.full_tensor()
    return tensor
