"""Log-probabilities of sampled tokens from hidden states, in float32, whatever the model is wrapped in."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trl_selfdistill.ops import linear_logps, output_head
from trl_selfdistill.scoring.forward import inside_forward
from trl_selfdistill.scoring.media import media_of


class TokenScorer:
    """Stands in for the model in TRL's log-probability method, which cuts the batch (and its images) into forwards.

    TRL's own head rounds logits to the model's precision; in bfloat16 the error of a log-probability is as large as the
    log-ratios themselves. `linear_logps` keeps float32 logits. With `fp32_head` (`cast_lm_head_to_fp32`) its operands
    are float32 too, autocast or not.
    """

    def __init__(self, wrapper: nn.Module, inner: nn.Module, temperature: float, *, fp32_head: bool = False) -> None:
        self._wrapper = wrapper
        self._inner = inner
        self._temperature = temperature
        self._fp32_head = fp32_head

    def __call__(self, *, labels: Tensor, fused_lm_head: bool, **inputs: Any) -> SimpleNamespace:
        """`log_probs` and `entropy` (nats), (B, L - 1), for labels of shape (B, L) that are -100 where not scored."""
        return inside_forward(self._wrapper, self._inner, self._score, labels=labels, **inputs)

    def _score(self, *, labels: Tensor, **inputs: Any) -> SimpleNamespace:
        model: Any = self._inner
        # Under prefix tuning the mask is longer than the tokens: it covers what PEFT put into the cache.
        position_ids = positions(model, inputs["attention_mask"], width=labels.size(1))
        hidden = model.base_model(**{**inputs, "use_cache": False, **position_ids}).last_hidden_state[:, :-1]
        targets = labels[:, 1:].to(hidden.device)
        mask = targets != -100
        with output_head(model) as head, head_precision(hidden.device, fp32=self._fp32_head):
            logps, entropies = linear_logps(
                hidden[mask].float() if self._fp32_head else hidden[mask],
                head.weight,
                targets[mask],
                bias=head.bias,
                temperature=self._temperature,
                logit_scale=head.logit_scale,
                softcap=head.softcap,
            )
        zeros = logps.new_zeros(mask.shape)
        return SimpleNamespace(
            log_probs=zeros.masked_scatter(mask, logps), entropy=zeros.masked_scatter(mask, entropies)
        )


def head_precision(device: torch.device, *, fp32: bool) -> AbstractContextManager[Any]:
    """Around an op on the LM head: no autocast, which would round its operands, where they are to be float32."""
    return torch.autocast(device.type, enabled=False) if fp32 else nullcontext()


def positions(model: Any, attention_mask: Tensor, width: int) -> dict[str, Tensor]:
    """`position_ids` of the last `width` tokens, counting real tokens only, for text models that take them.

    Models with images make their own.

    Without them, left padding shifts absolute positions, and rotary ones against a prefix. The teacher's prompt is
    padded to another width than the student's, so the shift would enter the log-ratio.
    """
    is_text_model = model.config.get_text_config() is model.config
    if not is_text_model or "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return {}
    return {"position_ids": (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -width:]}


def rows_to_score(accelerator: Accelerator, batch: dict[str, Any], has_context: Tensor) -> list[int]:
    """Rows with a teacher, filled up so that all processes run the same number of forwards, as FSDP and ZeRO-3 need."""
    if media_of(batch):
        return list(range(len(has_context)))  # images are not indexed by row
    rows = has_context.nonzero().flatten().tolist()
    counts: Any = accelerator.gather(torch.tensor([len(rows)], device=accelerator.device))
    return rows + [0] * (int(counts.max()) - len(rows))


def written(batch: dict[str, Any]) -> Tensor:
    """(B, T) bool: the completion tokens that the model itself wrote: no padding, no tool output."""
    return (batch["completion_mask"] * batch.get("tool_mask", 1)).bool()
