"""Log-probabilities of the completions under whoever scores, through TRL's own loop over forwards."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trl_selfdistill.scoring.forward import causal_lm
from trl_selfdistill.scoring.media import media_of
from trl_selfdistill.scoring.tokens import TokenScorer
from trl_selfdistill.teachers.base import Teacher, scoring_mode


def completion_logps(
    trainer: Any, weights: Teacher, batch: dict[str, Any], prompt_ids: Tensor, prompt_mask: Tensor, rows: list[int]
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """(log-probability, entropy) of every completion token after `prompt_ids`; zeros in rows not in `rows`.

    In float32, without gradient and dropout, under the model that `weights` puts in place.
    """
    completion_ids, completion_mask = batch["completion_ids"], batch["completion_mask"]
    logps = torch.zeros(completion_ids.shape, dtype=torch.float32, device=completion_ids.device)
    entropies = torch.zeros_like(logps)
    if not rows:
        return logps, entropies
    args, training = trainer.args, trainer.model.training
    fp32_head = args.cast_lm_head_to_fp32
    with weights.weights(trainer.model) as model, scoring_mode(model):
        inner = causal_lm(trainer.accelerator.unwrap_model(model))
        out = trainer._get_per_token_logps_and_entropies(
            model=TokenScorer(model, inner, trainer.temperature, fp32_head=fp32_head),
            input_ids=torch.cat([prompt_ids[rows], completion_ids[rows]], dim=1),
            attention_mask=torch.cat([prompt_mask[rows], completion_mask[rows]], dim=1),
            logits_to_keep=completion_ids.size(1),
            batch_size=args.per_device_train_batch_size if training else args.per_device_eval_batch_size,
            compute_entropy=True,
            **media_of(batch, width=prompt_ids.size(1) + completion_ids.size(1)),
        )
    logps[rows], entropies[rows] = out[0].float(), out[1].float()
    return logps, entropies
