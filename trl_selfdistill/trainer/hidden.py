"""Hidden states of the completions, and the loss of a router, from one forward of the backbone."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trl_selfdistill.scoring.forward import causal_lm, inside_forward
from trl_selfdistill.scoring.media import media_of
from trl_selfdistill.scoring.router import router_loss
from trl_selfdistill.scoring.shared_prefix import Texts
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


def teacher_hidden(trainer: Any, model: Any, batch: dict[str, Any], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "N H"]:
    """Hidden states from which `model`, shown the teacher's prompts, predicts the tokens in `mask`."""
    inner = causal_lm(trainer.accelerator.unwrap_model(model))
    prompt_ids, prompt_mask = batch["teacher_prompt_ids"], batch["teacher_prompt_mask"]
    found: list[Tensor] = []  # not returned, or FSDP2 would round it where it does not round the student's

    def plain(*, batch: dict[str, Any], **_: Any) -> None:
        found.append(completion_hidden(trainer, inner, prompt_ids, prompt_mask, batch)[0][mask])

    if not trainer.shares_prefix:
        inside_forward(model, trainer.accelerator.unwrap_model(model), plain, batch=batch)
        return found[0]
    rows = mask.any(dim=1).nonzero().flatten()
    own = (batch["completion_ids"][rows], batch["completion_mask"][rows])
    fp32 = trainer.args.cast_lm_head_to_fp32

    def keep(parts: list[tuple[list[int], Tensor]]) -> None:
        size = inner.config.get_text_config().hidden_size
        dtype = torch.float32 if fp32 or not parts else parts[0][1].dtype
        spread = torch.zeros(*mask.shape, size, dtype=dtype, device=mask.device)
        for places, hidden in parts:
            spread[rows[places], : hidden.size(1)] = hidden.to(spread)
        found.append(spread[mask])

    trainer.with_hidden(model, Texts(prompt_ids[rows], prompt_mask[rows], *own), max(1, len(rows)), keep)
    return found[0]
