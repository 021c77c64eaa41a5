"""Hidden states of the completions, and the loss of a router, from one forward of the backbone."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from trl_selfdistill.scoring.media import media_of
from trl_selfdistill.scoring.tokens import positions


def completion_hidden(
    trainer: Any, model: Any, prompt_ids: Tensor, prompt_mask: Tensor, batch: dict[str, Any], *, router: bool = False
) -> tuple[Float[Tensor, "B T H"], Tensor | None]:
    """Hidden states from which the completion tokens are predicted; the router's loss if asked for."""
    ids = torch.cat([prompt_ids, batch["completion_ids"]], dim=1)
    media = {k: v for k, v in media_of(batch, width=ids.size(1)).items() if not k.startswith("num_")}
    attention_mask = torch.cat([prompt_mask, batch["completion_mask"]], dim=1)
    with trainer.accelerator.autocast():
        inputs = {"input_ids": ids, "attention_mask": attention_mask, "use_cache": False, **media}
        inputs |= {"output_router_logits": True} if router else {}
        out = model.base_model(**inputs, **positions(model, attention_mask, width=ids.size(1)))
    hidden = out.last_hidden_state[:, -batch["completion_ids"].size(1) - 1 : -1]
    hidden = hidden.float() if trainer.args.cast_lm_head_to_fp32 else hidden
    return hidden, router_loss(model, out, attention_mask) if router else None


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
