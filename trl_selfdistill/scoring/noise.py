"""Does a model in training mode give the same answer twice?"""

from collections.abc import Iterator
from typing import Any

from peft import PeftModel
from torch import nn

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NOISE = ("dropout", "pdrop", "layerdrop", "jitter")
_OF_OTHER_HEADS = ("classifier", "summary")


def noise_of(model: nn.Module, args: Any) -> str | None:
    """What makes two passes of `model` over the same tokens differ in training mode, in words; `None` for nothing.

    Asked are the dropout modules (LoRA's too), the configurations, which name the dropout of attention, the noise of
    routers and what LoHa, LoKr, OFT and BOFT drop by hand, and `args.neftune_noise_alpha`.
    """
    if args.neftune_noise_alpha is not None:
        return f"neftune_noise_alpha={args.neftune_noise_alpha} adds noise to the embeddings"
    for name, module in model.named_modules():
        if isinstance(module, _DROPOUT) and module.p > 0:
            return f"the module {name} has dropout {module.p}"
    config: Any = model.config
    adapters = [each.to_dict() for each in model.peft_config.values()] if isinstance(model, PeftModel) else []
    for key, value in _entries([config.to_dict(), config.get_text_config().to_dict(), *adapters]):
        is_noise = any(word in key for word in _NOISE) and not any(word in key for word in _OF_OTHER_HEADS)
        if is_noise and isinstance(value, float | int) and value > 0:
            return f"the model's configuration has {key}={value}"
    return None


def _entries(configs: Any) -> Iterator[tuple[str, Any]]:
    """The entries of configurations and of those inside them, such as that of the images."""
    for config in configs:
        yield from ((str(key), value) for key, value in config.items())
        yield from _entries(value for value in config.values() if isinstance(value, dict))
