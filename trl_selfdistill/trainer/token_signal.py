"""The kind of algorithm that shapes GRPO's advantages token by token and leaves the loss to TRL."""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trl_selfdistill.maths import TokenScores
from trl_selfdistill.trainer.base import SelfDistillTrainer
from trl_selfdistill.trainer.rollouts import Lesson


class TokenSignalTrainer(SelfDistillTrainer):
    """Base of RLRT and AntiSD. Abstract: one method to write."""

    @abstractmethod
    def token_advantages(
        self, advantages: Float[Tensor, " B"], scores: TokenScores
    ) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
        """Token advantages of all rows, and metrics by name: (B, T) tensors with NaN where they do not apply.

        Rows without a teacher and tokens that the model did not write keep GRPO's advantage, whatever is returned.
        """

    def apply_teacher(self, batch: dict[str, Any], lesson: Lesson) -> dict[str, Any]:
        scores = self.score_tokens(batch, lesson)
        plain = batch["advantages"]
        shaped, metrics = self.token_advantages(plain, scores)
        batch["advantages"] = torch.where(scores.mask, shaped, plain.unsqueeze(1).expand_as(shaped))
        self.add_metrics(self.metric_log.tokens(scores, batch["completion_ids"]))
        self.add_metrics(self.metric_log.means(metrics))
        if self.args.log_token_signals:
            ids, mask = batch["completion_ids"], batch["completion_mask"]
            self.token_log.keep(lesson.rollouts, lesson.contexts, scores, ids, mask, batch["advantages"])
        return batch
