"""The kind of algorithm that replaces the loss by a divergence between student and teacher."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from peft import PeftModel
from torch import Tensor

from trl_selfdistill.maths import TokenScores
from trl_selfdistill.ops import DivergenceOutput, Head, linear_divergence, linear_logps, output_head
from trl_selfdistill.record.signal_log import Part
from trl_selfdistill.scoring.forward import causal_lm, inside_forward, keep_values
from trl_selfdistill.scoring.tokens import head_precision
from trl_selfdistill.teachers.base import scoring_mode
from trl_selfdistill.trainer.base import SelfDistillTrainer
from trl_selfdistill.trainer.hidden import completion_hidden, teacher_hidden
from trl_selfdistill.trainer.rollouts import Lesson, lesson_tensors
from trl_selfdistill.trainer.sampler_check import sampler_metrics
from trl_selfdistill.trainer.taught import taught, taught_scores


class DivergenceTrainer(SelfDistillTrainer):
    """Base of OPSD. Abstract: one method to write.

    The teacher is asked when the loss is computed, with its weights of that moment, and not when the rollouts are made.
    """

    scores_old_policy = False
    untaught = "training on nothing"
    learns_from_rewards = False

    def check_policy(self) -> None:
        super().check_policy()
        if isinstance(self.model, PeftModel) and self.model.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"{type(self).__name__} reads hidden states and does not support prompt or prefix tuning. Use a "
                "peft_config of another kind, such as LoraConfig."
            )
        if len(self.views) != 1:
            raise ValueError(
                f"{type(self).__name__}.views={self.views!r}: a divergence has one teacher. Name one view."
            )

    @abstractmethod
    def divergence_settings(self) -> dict[str, Any]:
        """`beta`, `entry_clip` and `token_clip` of `linear_divergence`."""

    def place_weights(self, mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Weights of the tokens by their place in the completion, ones by default. `mask` has the taught tokens."""
        return torch.ones(mask.shape, device=mask.device)

    def token_weights(self, scores: TokenScores) -> Float[Tensor, "B T"]:
        """More weights, by what both sides say of the tokens. Costs two more products with the LM head."""
        return torch.ones_like(scores.student_logps)

    def weighs_tokens(self, batch: dict[str, Any]) -> bool:
        """Whether `token_weights` is asked for a micro-batch: always, where it is defined."""
        return type(self).token_weights is not DivergenceTrainer.token_weights

    def apply_teacher(self, batch: dict[str, Any], lesson: Lesson) -> dict[str, Any]:
        self.signals.begin(lesson)
        (view,) = lesson.views.values()
        for name in ("teacher_prompt_ids", "teacher_prompt_mask", "has_context"):
            batch[name] = view.prompts[name]
        batch["advantages"] = batch["advantages"] * lesson.row_weights
        batch |= lesson_tensors(lesson, batch["advantages"].device)
        # The token mean is taken over all that one optimiser step sees. Scalars are neither shuffled nor split.
        batch["taught_tokens"] = self.accelerator.reduce(taught(batch).sum(), reduction="sum")
        return batch

    def batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        output = self.divergence(model, inputs)
        mask = taught(inputs)
        empty = torch.full(mask.shape, torch.nan, device=mask.device)
        values = self.divergence_metrics(output)
        metrics = {name: empty.masked_scatter(mask, value.float()) for name, value in values.items()}
        ids, valid = inputs["completion_ids"], inputs["completion_mask"].bool()
        scores = self._as_scores(output, inputs)
        metrics |= sampler_metrics(inputs, scores)
        self.log_signals(Part(inputs["row"], scores, ids, valid, None, metrics))
        return output.loss

    def policy_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """GRPO's loss without the router's, which is in the divergence already, whatever weighs the policy's loss."""
        enabled, self.aux_loss_enabled = self.aux_loss_enabled, False
        try:
            return super().policy_loss(model, inputs)
        finally:
            self.aux_loss_enabled = enabled

    def divergence(self, model: Any, inputs: dict[str, Any]) -> DivergenceOutput:
        """Teacher and student pass, each in a forward of the wrapped model, so that its hooks gather the weights.

        The loss holds that of the router, where the model has experts and `router_aux_loss_coef` is not 0.
        """
        taught_by = self._teacher_side(inputs)
        outputs: list[DivergenceOutput] = []
        metrics: dict[str, Tensor] = {}

        def student_side(*, batch: dict[str, Any], **_: Any) -> tuple[Tensor]:
            output, router = self._student_side(batch, *taught_by)
            if router is not None:
                metrics["aux_loss"] = router.detach()
                steps = self.current_gradient_accumulation_steps if self.model.training else 1
                output = replace(output, loss=output.loss + self.router_aux_loss_coef * router / steps)
            outputs.append(output)
            return (output.loss,)

        (loss,) = inside_forward(model, self.accelerator.unwrap_model(model), student_side, batch=inputs)
        self.add_metrics(self.metric_log.means(metrics))
        return replace(outputs[0], loss=keep_values(outputs[0].loss, loss))

    def divergence_metrics(self, output: DivergenceOutput) -> dict[str, Tensor]:
        """Values by token whose means are logged."""
        return {"self_distill/divergence": output.divergence}

    def _teacher_side(self, batch: dict[str, Any]) -> tuple[Tensor, Head | None]:
        """The teacher's hidden states (N, H), and its LM head where it is its own. In a forward of its own: the
        teacher's weights can be put in place only while no forward has them gathered."""
        with self.teacher.weights(self.model) as teacher, scoring_mode(teacher):
            hidden = teacher_hidden(self, teacher, batch, taught(batch))
            return hidden, self.teacher.own_head(causal_lm(self.accelerator.unwrap_model(teacher)))

    def _student_side(
        self, batch: dict[str, Any], teacher_hidden: Tensor, teacher_head: Head | None
    ) -> tuple[DivergenceOutput, Tensor | None]:
        """The divergence, and the router's loss before its coefficient."""
        mask = taught(batch)
        student_model = causal_lm(self.accelerator.unwrap_model(self.model))
        prompt = (batch["prompt_ids"], batch["prompt_mask"])
        hidden, router = completion_hidden(self, student_model, *prompt, batch, router=self.aux_loss_enabled)
        student_hidden = hidden[mask]
        precision = head_precision(mask.device, fp32=self.args.cast_lm_head_to_fp32)
        with output_head(student_model) as head, self.accelerator.autocast(), precision:
            weights = self._weights(student_hidden, teacher_hidden, head, teacher_head, batch)
            output = linear_divergence(
                student_hidden,
                teacher_hidden,
                head.weight,
                bias=head.bias,
                temperature=self.temperature,
                logit_scale=head.logit_scale,
                softcap=head.softcap,
                token_weights=weights / self._normaliser(batch),
                targets=batch["completion_ids"][mask],
                teacher_weight=None if teacher_head is None else teacher_head.weight,
                teacher_bias=None if teacher_head is None else teacher_head.bias,
                **self.divergence_settings(),
            )
        return output, router

    def _weights(
        self, student: Tensor, teacher: Tensor, head: Head, teacher_head: Head | None, batch: dict[str, Any]
    ) -> Float[Tensor, " N"]:
        """Row weight times place weight times token weight of the taught tokens."""
        mask = taught(batch)
        made = {"place_weights": self.place_weights(mask)}
        if self.weighs_tokens(batch):
            targets = batch["completion_ids"][mask]
            sides = ((student.detach(), head), (teacher, teacher_head or head))
            (s, s_entropy), (t, t_entropy) = (self._logps(hidden, side, targets) for hidden, side in sides)
            values = {
                "student_logps": s,
                "student_entropy": s_entropy,
                "teacher_logps": t,
                "teacher_entropy": t_entropy,
            }
            made["token_weights"] = self.token_weights(self._spread(values, batch))
        weights = batch["row_weight"].unsqueeze(1)
        for name, own in made.items():
            if own.shape != mask.shape or not own[mask].isfinite().all():
                raise ValueError(
                    f"{type(self).__name__}.{name} must return finite weights (B, T) = {tuple(mask.shape)}."
                )
            weights = weights * own
        return weights.detach()[mask]

    @torch.no_grad()
    def _logps(self, hidden: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
        scale = {"temperature": self.temperature, "logit_scale": head.logit_scale, "softcap": head.softcap}
        return linear_logps(hidden, head.weight, targets, bias=head.bias, **scale)

    def _normaliser(self, batch: dict[str, Any]) -> Tensor:
        """Taught tokens of one optimiser step and one process; gradients are averaged over processes later."""
        tokens = batch["taught_tokens"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:  # evaluation neither splits nor accumulates
            tokens = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return tokens

    def _as_scores(self, output: DivergenceOutput, batch: dict[str, Any]) -> TokenScores:
        names = ("student_logps", "teacher_logps", "student_entropy", "teacher_entropy")
        return self._spread({name: getattr(output, name) for name in names}, batch)

    def _spread(self, values: dict[str, Tensor], batch: dict[str, Any]) -> TokenScores:
        """Values (N,) of the taught tokens as scores (B, T)."""
        state: Any = {"training": self._mode == "train", "starts_batch": self.signals.is_new}
        return taught_scores(values, batch, step=self.state.global_step, **state)
