"""The tokens that a divergence is taken over, and what is known of them."""

from typing import Any

import torch
from torch import Tensor

from trl_selfdistill.maths import TokenScores
from trl_selfdistill.scoring.tokens import written


def taught(batch: dict[str, Any]) -> Tensor:
    """(B, T) bool: completion tokens that the model wrote, in rows with a teacher."""
    return written(batch) & batch["has_context"].unsqueeze(1)


def taught_scores(values: dict[str, Tensor], batch: dict[str, Any], **state: Any) -> TokenScores:
    """`values` (N,) of the taught tokens as scores (B, T). `state` are the fields that say where the run is."""
    mask = taught(batch)
    spread: Any = {name: torch.zeros(mask.shape, device=mask.device) for name in values}
    old = batch.get("old_per_token_logps")
    return TokenScores(
        **{name: zeros.masked_scatter(mask, values[name].float()) for name, zeros in spread.items()},
        mask=mask,
        correct=batch["correct"],
        median_entropy=float("nan"),
        pass_rate=batch["pass_rate"],
        old_logps=None if old is None else old.float().masked_fill(~mask, 0.0),
        **state,
    )
