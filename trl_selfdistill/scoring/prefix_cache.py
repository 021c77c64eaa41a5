"""A prompt's keys and values, shared by the rows that follow it, and which models have such."""

import inspect
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_LAYER_TYPES = ("full_attention", "sliding_attention", "attention")  # the last is the first's old name
_CACHE_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
_ROTARY_BY_LENGTH = ("dynamic", "longrope")


def supports_shared_prefix(model: nn.Module) -> str | None:
    """`None` if completions can be scored from the prompt's cache with the plain path's result, else why not, in words.

    `model` is a causal language model of transformers, in its PEFT wrapper or out of it. Its configuration and classes
    are asked, before any forward. Whether the batch has images is for the caller to ask.
    """
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            return "its adapter puts tokens or keys of its own in front of the prompt"
        model = model.get_base_model()
    lm: Any = model
    config = lm.config
    if config.is_encoder_decoder:
        return "it is an encoder-decoder model"
    if config.get_text_config(decoder=True) is not config:
        return "a model with images makes its own positions"
    if "past_key_values" not in inspect.signature(lm.base_model.forward).parameters:
        return "it keeps no keys and values"
    # In transformers 5.0, Jamba and its kin have the second name for it.
    declared = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    if others := set(declared) - set(_LAYER_TYPES):
        return f"it has layers of type {', '.join(sorted(others))}"
    layers = DynamicCache(config=config).layers
    if others := _other_layers(layers):
        return f"its cache has layers of type {others}"
    if len(layers) != config.num_hidden_layers:
        return "some of its layers share their keys and values"
    if _rotary_types(config) & set(_ROTARY_BY_LENGTH):
        return "its rotary positions depend on the length of the longest row in the forward"
    return None


def _other_layers(layers: list[Any]) -> str:
    return ", ".join(sorted({type(layer).__name__ for layer in layers if type(layer) not in _CACHE_LAYERS}))


def _rotary_types(config: Any) -> set[str | None]:
    """The kinds of rotary positions: one for the model or, as in Gemma 3, one per layer type."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {entry.get("rope_type") for entry in (parameters, *nested)}


class PromptCache(DynamicCache):
    """The keys and values of U prompts, seen by each row of a micro-batch in front of its own.

    Read-only. Nothing is kept of the rows, and one layer at a time is expanded to them. Lengths and mask sizes come
    from the prompts' layers, which a forward leaves as they are.

    Args:
        prompts: the cache that the model returned for the prompts.
        places: for each row, which of the U prompts it follows.

    Raises `ValueError` where `prompts` is something else than keys and values.
    """

    def __init__(self, prompts: Any, places: list[int]) -> None:
        super().__init__()
        if not isinstance(prompts, DynamicCache) or _other_layers(prompts.layers) or not prompts.get_seq_length():
            found = _other_layers(prompts.layers) if isinstance(prompts, DynamicCache) else type(prompts).__name__
            raise ValueError(
                f"A shared prefix needs the keys and values of each layer, but the model returned {found or 'none'}. "
                "Score in evaluation mode (gradient checkpointing keeps no cache in training mode), or score the "
                "plain way."
            )
        self.layers = prompts.layers
        self._places = torch.tensor(places)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        layer: Any = self.layers[layer_idx]
        self._places = self._places.to(key_states.device)  # layers may be spread over devices
        keys = torch.cat([layer.keys.index_select(0, self._places), key_states], dim=-2)
        return keys, torch.cat([layer.values.index_select(0, self._places), value_states], dim=-2)
