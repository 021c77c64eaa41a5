"""The kind of algorithm that shapes GRPO's advantages token by token and leaves the loss to TRL.

The teacher is asked when the rollouts are made. The advantages are shaped when the loss is computed: TRL asks for the
student's log-probabilities first and reads the advantages afterwards, and the algorithm works between the two.

The student's side costs nothing then: it is what the loss was given, or, where the policy has moved on since it wrote
the rollouts, what TRL kept of it as the old policy's. A pass of its own is needed where those are not exact.
"""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from transformers.utils import logging

from trl_selfdistill.maths import TokenScores, ViewScores, exact_median
from trl_selfdistill.record.signal_log import Part
from trl_selfdistill.scoring.tokens import written
from trl_selfdistill.teachers.base import LiveTeacher
from trl_selfdistill.trainer.base import SelfDistillTrainer
from trl_selfdistill.trainer.rollouts import Lesson, lesson_tensors
from trl_selfdistill.trainer.sampler_check import sampler_metrics
from trl_selfdistill.trainer.scorer import completion_logps

logger = logging.get_logger(__name__)


class TokenSignalTrainer(SelfDistillTrainer):
    """Base of RLRT and AntiSD. Abstract: one method to write."""

    _in_loss: dict[str, Any] | None = None  # the micro-batch whose loss is being computed
    _old_entropy: Tensor | None = None  # of the first pass over the rollouts: the old policy's, where TRL asks for it

    def prepare_scoring(self) -> None:
        super().prepare_scoring()
        reason = "policy_logps='trl' rounds them" if self.args.policy_logps == "trl" else self.noise
        self._scores_student = reason is not None
        own = f"in a pass of its own, because {reason}" if reason else "by GRPO's own pass"
        logger.info(f"The student's log-probabilities for the token advantages are made {own}.")

    @abstractmethod
    def token_advantages(
        self, advantages: Float[Tensor, " B"], scores: TokenScores
    ) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
        """Token advantages of a micro-batch, and metrics by name: (B, T) tensors with NaN where they do not apply.

        Rows without a teacher and tokens that the model did not write keep GRPO's advantage, whatever is returned. The
        first metric is also the column `weight` of the token log.
        """

    def apply_teacher(self, batch: dict[str, Any], lesson: Lesson) -> dict[str, Any]:
        self.signals.begin(lesson)
        device = batch["advantages"].device
        batch |= lesson_tensors(lesson, device)
        for name, view in lesson.views.items():
            rows = view.prompts["has_context"]
            if self.args.skip_unused_scores:
                rows = rows & self.is_used(batch["advantages"], batch["correct"])
            prompt = (view.prompts["teacher_prompt_ids"], view.prompts["teacher_prompt_mask"])
            logps, entropy = completion_logps(self, self.teacher, batch, *prompt, rows)
            batch[f"view/{name}/logps"], batch[f"view/{name}/entropy"] = logps, entropy
            batch[f"view/{name}/rows"] = rows
        old_entropy, self._old_entropy = self._old_entropy, None
        if self._scores_student:
            own_prompt = (batch["prompt_ids"], batch["prompt_mask"])
            student = completion_logps(self, LiveTeacher(), batch, *own_prompt, self._has_signal(batch))
            batch["student_logps"], batch["student_entropy"] = student
        elif "old_per_token_logps" in batch:
            assert old_entropy is not None
            batch["student_logps"], batch["student_entropy"] = batch["old_per_token_logps"].float(), old_entropy.float()
        batch["median_entropy"] = torch.tensor(self._median_entropy(batch), dtype=torch.float64, device=device)
        return batch

    def _has_signal(self, batch: dict[str, Any]) -> Tensor:
        """(B,) rows that have a view, or all of them where no teacher is asked."""
        rows = [batch[f"view/{name}/rows"] for name in self.views]
        return torch.stack(rows).any(dim=0) if rows else torch.ones_like(batch["correct"])

    def _median_entropy(self, batch: dict[str, Any]) -> float:
        """Of the first view over the tokens of all processes, NaN where no teacher is asked."""
        if not self.views:
            return float("nan")
        name = self.views[0]
        mask = written(batch) & batch[f"view/{name}/rows"].unsqueeze(1)
        return exact_median(self.metric_log.all_tokens(batch[f"view/{name}/entropy"][mask]))

    def batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._in_loss = {**inputs}  # the buffered batch keeps GRPO's advantages, for the next iteration
        try:
            return self.policy_loss(model, self._in_loss)
        finally:
            self._in_loss = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if not self._scores_student:
            kwargs["compute_entropy"] = True  # the head makes it in any case
        out = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._in_loss is not None:
            if "student_logps" not in self._in_loss:
                own = {"student_logps": out[0], "student_entropy": out[1]}
                self._in_loss |= {name: values.detach().float() for name, values in own.items()}
            self._in_loss["advantages"] = self.shape(self._in_loss)
        elif self._old_entropy is None:
            self._old_entropy = out[1]
        return out

    def shape(self, inputs: dict[str, Any]) -> Float[Tensor, "B T"]:
        """The token advantages of a micro-batch, checked and logged."""
        plain, scores = inputs["advantages"], self._scores(inputs)
        if not self.learns_from_rewards:
            plain = torch.zeros_like(plain)
        shaped, metrics = self.token_advantages(plain, scores)
        self._check(shaped, scores)
        # The row's weight comes last: it weighs what the teacher added, too.
        weights = inputs["row_weight"]
        advantages = weights.unsqueeze(1) * torch.where(scores.mask, shaped, plain.unsqueeze(1).expand_as(shaped))
        ids, mask = inputs["completion_ids"], inputs["completion_mask"].bool()
        metrics = {**metrics, **sampler_metrics(inputs, scores)}
        self.log_signals(Part(inputs["row"], scores, ids, mask, advantages, metrics, weights * plain))
        return advantages

    def gathered(self, values: Shaped[Tensor, "B T"]) -> Shaped[Tensor, "C U"]:
        """The rows of this micro-batch in all processes, padded with zeros. To be called by every process."""
        for dim in (0, 1):
            values = self.accelerator.pad_across_processes(values, dim=dim)
        everywhere: Any = self.accelerator.gather(values)
        return everywhere

    def own_part(self, everywhere: Float[Tensor, "C U"], like: Shaped[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """The rows of `gathered` that are of this process, in the shape of `like`."""
        start = len(everywhere) // self.accelerator.num_processes * self.accelerator.process_index
        return everywhere[start : start + like.size(0), : like.size(1)]

    def _scores(self, inputs: dict[str, Any]) -> TokenScores:
        mask = written(inputs) & self._has_signal(inputs).unsqueeze(1)
        unsaid = torch.full_like(inputs["student_logps"], torch.nan)
        views = {}
        for name in self.views:
            seen = mask & inputs[f"view/{name}/rows"].unsqueeze(1)
            logps, entropy = inputs[f"view/{name}/logps"], inputs[f"view/{name}/entropy"]
            views[name] = ViewScores(logps.masked_fill(~seen, 0.0), entropy.masked_fill(~seen, 0.0), seen)
        first = views[self.views[0]] if self.views else ViewScores(unsaid, unsaid, mask)
        return TokenScores(
            student_logps=inputs["student_logps"].masked_fill(~mask, 0.0),
            teacher_logps=first.logps,
            student_entropy=inputs["student_entropy"].masked_fill(~mask, 0.0),
            teacher_entropy=first.entropy,
            mask=mask,
            correct=inputs["correct"],
            median_entropy=inputs["median_entropy"].item(),
            training=self._mode == "train",
            starts_batch=self.signals.is_new,
            pass_rate=inputs["pass_rate"],
            step=self.state.global_step,
            views=views,
        )

    def _check(self, shaped: Any, scores: TokenScores) -> None:
        name, shape = type(self).__name__, tuple(scores.mask.shape)
        if not isinstance(shaped, Tensor) or shaped.shape != shape:
            got = tuple(shaped.shape) if isinstance(shaped, Tensor) else type(shaped).__name__
            raise ValueError(f"{name}.token_advantages must return a tensor (B, T) = {shape}, but returned {got}.")
        if not shaped[scores.mask].isfinite().all():
            raise ValueError(
                f"{name}.token_advantages returned NaN or infinite advantages, which would ruin the policy. Bound the "
                "exponent before exp, and mind tokens whose log-probability is -inf."
            )
