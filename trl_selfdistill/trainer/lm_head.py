"""Log-probabilities of completions, in the place of TRL's: exact, and with each prompt encoded once.

TRL has one method for the policy's, the old policy's and the reference's log-probabilities. It is overridden here, so
that GRPO's ratio and the teacher's log-ratio come from numbers of one kind.
"""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from jaxtyping import Float
from torch import Tensor, nn
from transformers.utils import logging
from trl import GRPOTrainer

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.ops import output_head
from trl_selfdistill.scoring.forward import causal_lm, inside_forward
from trl_selfdistill.scoring.noise import noise_of
from trl_selfdistill.scoring.prefix_cache import supports_shared_prefix
from trl_selfdistill.scoring.shared_prefix import Texts, make_plan, run
from trl_selfdistill.scoring.tokens import TokenScorer, positions
from trl_selfdistill.teachers.base import scoring_mode

logger = logging.get_logger(__name__)
Parts = list[tuple[list[int], Tensor]]
"""Row numbers and their hidden states (b, t, H), a micro-batch each."""


class ExactLogpsTrainer(GRPOTrainer):
    """GRPO whose log-probabilities and entropies come from float32 logits. Abstract."""

    args: SelfDistillConfig
    model: Any  # the types that TRL and accelerate give to these are wider than what is used
    accelerator: Any
    shares_prefix = False
    """Whether passes without gradient encode a prompt that several rows have once."""
    scores_old_policy = True
    """Whether the student's scores are those of the policy that wrote the rollouts, and not of the one in training."""
    noise: str | None = None
    """Why two passes over the same tokens in training mode differ; `None` where they agree."""

    def prepare_scoring(self) -> None:
        """Ask the model how it can be scored. Says once where it is the dearer way."""
        if self.args.policy_logps == "fused" and self.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
            raise ValueError(
                "torch_compile=True (or a launch with --dynamo_backend) compiles nothing of the loss with "
                "policy_logps='fused', and the gradients of several processes would not be averaged. Set "
                "torch_compile=False, or, where the algorithm takes it, policy_logps='trl'."
            )
        self.noise = noise_of(self.model, self.args)
        reason = supports_shared_prefix(self.model) if self.args.shared_prefix else None
        self.shares_prefix = self.args.shared_prefix and reason is None
        if reason and self.accelerator.is_main_process:
            logger.warning(f"shared_prefix: each row's prompt is encoded on its own, because {reason}.")

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):
        if self.args.policy_logps == "trl":
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size, **kwargs
            )
        if torch.is_grad_enabled() or kwargs.get("compute_aux_loss") or not self._shares_own_prompt(model):
            return self.row_by_row(model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size, **kwargs)
        cut = input_ids.size(1) - logits_to_keep
        texts = Texts(input_ids[:, :cut], attention_mask[:, :cut], input_ids[:, cut:], attention_mask[:, cut:])
        with scoring_mode(model):
            return *self.prompt_by_prompt(model, texts, batch_size or len(input_ids)), None

    def _shares_own_prompt(self, model: nn.Module) -> bool:
        """Whether the policy's own prompt is encoded once, in passes for the old policy, the reference, an evaluation.

        In lower precision a shared prompt changes the rounding, and a ratio that must be 1 would not be.
        """
        exact = self.accelerator.mixed_precision == "no" and is_float32(self.model)
        return self.shares_prefix and exact and not (model.training and self.noise)

    def row_by_row(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What TRL's method returns, by its own loop over forwards, with our head."""
        return super()._get_per_token_logps_and_entropies(self._scorer(model), *args, **kwargs)

    def prompt_by_prompt(
        self, model: nn.Module, texts: Texts, batch_size: int
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Log-probabilities and entropies of completions, each distinct prompt encoded once; without gradient."""
        scorer, inner = self._scorer(model), causal_lm(self.accelerator.unwrap_model(model))
        logps = torch.zeros(texts.completion_ids.shape, dtype=torch.float32, device=texts.completion_ids.device)
        entropies = torch.zeros_like(logps)

        def score(parts: Parts) -> None:
            with output_head(inner) as head:
                for rows, hidden in parts:
                    own = (rows, slice(hidden.size(1)))
                    mask = texts.completion_mask[own].bool()
                    found = scorer.score_hidden(hidden[mask.to(hidden.device)], texts.completion_ids[own][mask], head)
                    for values, result in zip(found, (logps, entropies), strict=True):
                        result[own] = result[own].masked_scatter(mask, values.to(result))

        self.with_hidden(model, texts, batch_size, score)
        return logps, entropies

    def with_hidden(self, model: nn.Module, texts: Texts, batch_size: int, use: Callable[[Parts], None]) -> None:
        """Call `use` with the rows and hidden states of all completions, inside the wrapped model's forward.

        Every process runs as many forwards as the one with the most, and `use` once after them: what gathers weights
        there (FSDP2, ZeRO-3) is in step.
        """
        inner = causal_lm(self.accelerator.unwrap_model(model))
        plan = make_plan(*texts, batch_size=batch_size)
        counts = self.accelerator.gather(torch.tensor([plan.forwards], device=self.accelerator.device))

        def forward(**inputs: Any) -> Any:
            width = inputs["input_ids"].size(1)
            return inner.base_model(**inputs, **positions(inner, inputs["attention_mask"], width=width))

        def whole(**_: Any) -> None:
            use(list(run(plan, forward, forwards=int(counts.max()))))

        with self.accelerator.autocast():
            inside_forward(model, inner, whole, input_ids=texts.completion_ids)

    def _scorer(self, model: nn.Module) -> TokenScorer:
        return TokenScorer(
            model,
            causal_lm(self.accelerator.unwrap_model(model)),
            self.temperature,
            fp32_head=self.args.cast_lm_head_to_fp32,
            entropy_grad=bool(self.args.entropy_coef) or self.args.use_adaptive_entropy,
        )


def is_float32(model: nn.Module) -> bool:
    """Whether all weights are float32. A model's own `dtype` is that of its first weight alone."""
    return all(p.dtype == torch.float32 for p in model.parameters() if p.is_floating_point())
