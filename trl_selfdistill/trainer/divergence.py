"""The kind of algorithm that replaces the loss by a divergence between student and teacher."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from trl_selfdistill.maths import TokenScores
from trl_selfdistill.ops import DivergenceOutput, Head, linear_divergence, output_head
from trl_selfdistill.scoring.forward import causal_lm, inside_forward
from trl_selfdistill.scoring.media import media_of
from trl_selfdistill.scoring.tokens import positions
from trl_selfdistill.teachers.base import scoring_mode
from trl_selfdistill.trainer.base import SelfDistillTrainer
from trl_selfdistill.trainer.rollouts import Lesson


class DivergenceTrainer(SelfDistillTrainer):
    """Base of OPSD. Abstract: one method to write.

    The teacher is asked when the loss is computed, with its weights of that moment, and not when the rollouts are made.
    """

    def set_up(self) -> None:
        if isinstance(self.model, PeftModel) and self.model.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"{type(self).__name__} reads hidden states and does not support prompt or prefix tuning. Use a "
                "peft_config of another kind, such as LoraConfig."
            )

    @abstractmethod
    def divergence_settings(self) -> dict[str, Any]:
        """`beta`, `entry_clip` and `token_clip` of `linear_divergence`."""

    def apply_teacher(self, batch: dict[str, Any], lesson: Lesson) -> dict[str, Any]:
        batch["teacher_prompt_ids"] = lesson.prompts["teacher_prompt_ids"]
        batch["teacher_prompt_mask"] = lesson.prompts["teacher_prompt_mask"]
        batch["has_context"] = lesson.prompts["has_context"]
        # The token mean is taken over all that one optimiser step sees. Scalars are neither shuffled nor split.
        batch["taught_tokens"] = self.accelerator.reduce(taught(batch).sum(), reduction="sum")
        if self.args.log_token_signals:
            scores = self.score_tokens(batch, lesson)
            ids, mask = batch["completion_ids"], batch["completion_mask"]
            self.token_log.keep(lesson.rollouts, lesson.contexts, scores, ids, mask, torch.zeros_like(mask).float())
        return batch

    def batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        output = self.divergence(model, inputs)
        self.add_metrics(self.metric_log.means(self.divergence_metrics(output)))
        self.add_metrics(self.metric_log.tokens(self._as_scores(output, inputs), inputs["completion_ids"]))
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
        # The gradient has to take the way of the hooks (FSDP2, ZeRO-3); the value does not, which FSDP2 rounds to
        # bfloat16 under mixed precision.
        return replace(outputs[0], loss=outputs[0].loss.detach() + (loss - loss.detach()).float())

    def divergence_metrics(self, output: DivergenceOutput) -> dict[str, Tensor]:
        """Values by token whose means are logged."""
        return {"self_distill/divergence": output.divergence}

    def _teacher_side(self, batch: dict[str, Any]) -> tuple[Tensor, Head | None]:
        """The teacher's hidden states (N, H) at the taught tokens, and its LM head where it is not the policy's.

        In a forward of its own: the teacher's weights can be put in place only while no forward has them gathered.
        """
        prompt = (batch["teacher_prompt_ids"], batch["teacher_prompt_mask"])
        hidden: list[Tensor] = []  # not returned, or FSDP2 would round it where it does not round the student's
        with self.teacher.weights(self.model) as teacher, scoring_mode(teacher):
            inner = self.accelerator.unwrap_model(teacher)

            def teacher_side(*, batch: dict[str, Any], **_: Any) -> None:
                hidden.append(self._hidden(causal_lm(inner), *prompt, batch)[0][taught(batch)])

            inside_forward(teacher, inner, teacher_side, batch=batch)
            return hidden[0], self.teacher.own_head(causal_lm(inner))

    def _student_side(
        self, batch: dict[str, Any], teacher_hidden: Tensor, teacher_head: Head | None
    ) -> tuple[DivergenceOutput, Tensor | None]:
        """The divergence, and the router's loss before its coefficient."""
        mask = taught(batch)
        student_model = causal_lm(self.accelerator.unwrap_model(self.model))
        prompt = (batch["prompt_ids"], batch["prompt_mask"])
        hidden, router = self._hidden(student_model, *prompt, batch, router=self.aux_loss_enabled)
        student_hidden = hidden[mask]
        weights = torch.full((len(student_hidden),), 1.0, device=mask.device) / self._normaliser(batch)
        with output_head(student_model) as head:
            output = linear_divergence(
                student_hidden,
                teacher_hidden,
                head.weight,
                bias=head.bias,
                temperature=self.temperature,
                logit_scale=head.logit_scale,
                softcap=head.softcap,
                token_weights=weights,
                targets=batch["completion_ids"][mask],
                teacher_weight=None if teacher_head is None else teacher_head.weight,
                teacher_bias=None if teacher_head is None else teacher_head.bias,
                **self.divergence_settings(),
            )
        return output, router

    def _hidden(
        self, model: Any, prompt_ids: Tensor, prompt_mask: Tensor, batch: dict[str, Any], *, router: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, T, H) from which the completion tokens are predicted; the router's loss if asked for."""
        ids = torch.cat([prompt_ids, batch["completion_ids"]], dim=1)
        media = {k: v for k, v in media_of(batch, width=ids.size(1)).items() if not k.startswith("num_")}
        attention_mask = torch.cat([prompt_mask, batch["completion_mask"]], dim=1)
        with self.accelerator.autocast():
            inputs = {"input_ids": ids, "attention_mask": attention_mask, "use_cache": False, **media}
            inputs |= {"output_router_logits": True} if router else {}
            out = model.base_model(**inputs, **positions(model, attention_mask, width=ids.size(1)))
        hidden = out.last_hidden_state[:, -batch["completion_ids"].size(1) - 1 : -1]
        return hidden, router_loss(model, out, attention_mask) if router else None

    def _normaliser(self, batch: dict[str, Any]) -> Tensor:
        """Taught tokens of one optimiser step and one process; gradients are averaged over processes later."""
        tokens = batch["taught_tokens"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:  # evaluation neither splits nor accumulates
            tokens = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return tokens

    def _as_scores(self, output: DivergenceOutput, batch: dict[str, Any]) -> TokenScores:
        mask = taught(batch)
        empty = torch.zeros(mask.shape, device=mask.device)
        names = ("student_logps", "teacher_logps", "student_entropy", "teacher_entropy")
        spread = {name: empty.masked_scatter(mask, getattr(output, name).float()) for name in names}
        return TokenScores(
            **spread,
            mask=mask,
            correct=torch.zeros(len(mask), dtype=torch.bool, device=mask.device),
            median_entropy=float("nan"),
            training=self.model.training,
        )


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
    return load_balancing_loss_func(logits, logits[0].size(-1), top_k, attention_mask)


def taught(batch: dict[str, Any]) -> Tensor:
    """(B, T) bool: completion tokens that the model wrote, in rows with a teacher."""
    valid = batch["completion_mask"] * batch.get("tool_mask", 1)
    return valid.bool() & batch["has_context"].unsqueeze(1)
