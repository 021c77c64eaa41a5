"""The loss of a router, in models with experts."""

from typing import Any

from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func


def router_loss(model: Any, out: Any, attention_mask: Tensor) -> Tensor:
    """Load-balancing loss of the experts, as TRL takes it: N Σ_i f_i P_i over all layers and tokens; k where balanced.

    f_i is the number of times that a token goes to expert i of N (k times per token in all), P_i the mean probability
    of expert i. Switch Transformer (https://huggingface.co/papers/2101.03961), Eq. 4 to 6.

    Raises `ValueError` for a model that has experts and does not say how it routes.
    """
    logits = out.get("router_logits")
    if logits is None:
        raise ValueError(
            f"{type(model).__name__} returns no router logits, from which the router's loss is made. Set "
            "router_aux_loss_coef=0."
        )
    top_k = model.config.get_text_config().num_experts_per_tok
    loss: Any = load_balancing_loss_func(logits, logits[0].size(-1), top_k, attention_mask)  # 0 without any logits
    return loss
