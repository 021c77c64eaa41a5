"""Log-probabilities of the completions under whoever scores."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trl_selfdistill.scoring.media import media_of
from trl_selfdistill.scoring.shared_prefix import Texts
from trl_selfdistill.scoring.tokens import rows_to_score
from trl_selfdistill.teachers.base import Teacher, scoring_mode


def completion_logps(
    trainer: Any,
    weights: Teacher,
    batch: dict[str, Any],
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    has_context: Bool[Tensor, " B"],
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """(log-probability, entropy) of every completion token after `prompt_ids`, in the rows that have a context.

    In float32, without gradient and dropout, under the model that `weights` puts in place. Zeros in other rows.
    """
    completion_ids, completion_mask = batch["completion_ids"], batch["completion_mask"]
    logps = torch.zeros(completion_ids.shape, dtype=torch.float32, device=completion_ids.device)
    entropies = torch.zeros_like(logps)
    args, training = trainer.args, trainer.model.training
    batch_size = args.per_device_train_batch_size if training else args.per_device_eval_batch_size
    if trainer.shares_prefix:
        rows = has_context.nonzero().flatten().tolist()
        texts = Texts(prompt_ids[rows], prompt_mask[rows], completion_ids[rows], completion_mask[rows])
        with weights.weights(trainer.model) as model, scoring_mode(model):
            logps[rows], entropies[rows] = trainer.prompt_by_prompt(model, texts, batch_size)
        return logps, entropies
    rows = rows_to_score(trainer.accelerator, batch, has_context)
    if not rows:
        return logps, entropies
    with weights.weights(trainer.model) as model, scoring_mode(model):
        out = trainer.row_by_row(
            model,
            input_ids=torch.cat([prompt_ids[rows], completion_ids[rows]], dim=1),
            attention_mask=torch.cat([prompt_mask[rows], completion_mask[rows]], dim=1),
            logits_to_keep=completion_ids.size(1),
            batch_size=batch_size,
            compute_entropy=True,
            **media_of(batch, width=prompt_ids.size(1) + completion_ids.size(1)),
        )
    logps[rows], entropies[rows] = out[0].float(), out[1].float()
    return logps, entropies
