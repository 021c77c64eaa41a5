"""Log-probabilities of sampled tokens from hidden states, in float32, whatever the model is wrapped in."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from trl_selfdistill.ops import Head, linear_logps, output_head
from trl_selfdistill.scoring.forward import inside_forward, keep_values
from trl_selfdistill.scoring.media import media_of
from trl_selfdistill.scoring.router import router_loss


class TokenScorer:
    """Stands in for the model in TRL's log-probability method, which cuts the batch (and its images) into forwards.

    TRL's own head rounds logits to the model's precision; in bfloat16 the error of a log-probability is as large as the
    log-ratios themselves. `linear_logps` keeps float32 logits. With `fp32_head` (`cast_lm_head_to_fp32`) its operands
    are float32 too, autocast or not. Gradients reach the hidden states and the head as they do in TRL's.

    Args:
        wrapper: the model as it is trained or scored, under DDP, FSDP, DeepSpeed, PEFT or none of them.
        inner: the causal language model inside.
        temperature: positive; logits are divided by it.
        fp32_head: whether the product with the head has float32 operands.
        entropy_grad: whether the entropy carries a gradient.
    """

    def __init__(
        self,
        wrapper: nn.Module,
        inner: nn.Module,
        temperature: float,
        *,
        fp32_head: bool = False,
        entropy_grad: bool = False,
    ) -> None:
        self._wrapper = wrapper
        self._inner = inner
        self._temperature = temperature
        self._fp32_head = fp32_head
        self._entropy_grad = entropy_grad

    def __call__(self, *, labels: Tensor, fused_lm_head: bool, **inputs: Any) -> SimpleNamespace:
        """`log_probs` and `entropy` (nats), (B, L - 1), for labels of shape (B, L) that are -100 where not scored.

        `aux_loss` is the router's where `output_router_logits` asks for it, else None.
        """
        exact: list[Tensor] = []

        def score(**inputs: Any) -> tuple[Tensor, ...]:
            exact.extend(self._score(**inputs))
            return tuple(exact)

        hooked = inside_forward(self._wrapper, self._inner, score, labels=labels, **inputs)
        values = [keep_values(*pair) for pair in zip(exact, hooked, strict=True)]
        return SimpleNamespace(log_probs=values[0], entropy=values[1], aux_loss=values[2] if values[2:] else None)

    def _score(self, *, labels: Tensor, **inputs: Any) -> list[Tensor]:
        model: Any = self._inner
        # Under prefix tuning the mask is longer than the tokens: it covers what PEFT put into the cache.
        position_ids = positions(model, inputs["attention_mask"], width=labels.size(1))
        out = model.base_model(**{**inputs, "use_cache": False, **position_ids})
        hidden = out.last_hidden_state[:, :-1]
        mask = labels[:, 1:].to(hidden.device) != -100
        with output_head(model) as head:
            targets = labels[:, 1:].to(hidden.device)[mask]
            scored = self.score_hidden(hidden[mask], targets, head)
        zeros = scored[0].new_zeros(mask.shape)
        # The scatter keeps the way to the model where nothing is scored: such a micro-batch has a gradient of 0.
        values = [zeros.masked_scatter(mask.to(zeros.device), each) for each in scored]
        if inputs.get("output_router_logits"):
            values.append(router_loss(model, out, inputs["attention_mask"]))
        return values

    def score_hidden(
        self, hidden: Float[Tensor, "N H"], targets: Int[Tensor, " N"], head: Head
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Log-probabilities and entropies of `targets`."""
        hidden = hidden.to(head.weight.device)  # the model may be split over devices
        with head_precision(hidden.device, fp32=self._fp32_head):
            return linear_logps(
                hidden.float() if self._fp32_head else hidden,
                head.weight,
                targets.to(hidden.device),
                bias=head.bias,
                temperature=self._temperature,
                logit_scale=head.logit_scale,
                softcap=head.softcap,
                entropy_grad=self._entropy_grad,
            )


def head_precision(device: torch.device, *, fp32: bool) -> AbstractContextManager[Any]:
    """Around an op on the LM head: no autocast, which would round its operands, where they are to be float32."""
    return torch.autocast(device.type, enabled=False) if fp32 else nullcontext()


def positions(model: Any, attention_mask: Shaped[Tensor, "B L"], width: int) -> dict[str, Tensor]:
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
