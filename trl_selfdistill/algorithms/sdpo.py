"""SDPO, self-distillation policy optimisation (https://huggingface.co/papers/2601.20802).

Pull every rollout toward the policy that has seen a right one of its group, or what the environment said of it.
"""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.context.builders import as_context
from trl_selfdistill.context.rollout import Context, Rollout
from trl_selfdistill.grpo_settings import check_no_policy_loss
from trl_selfdistill.maths import TokenScores, bounded_exp
from trl_selfdistill.ops import DivergenceOutput
from trl_selfdistill.settings import in_range
from trl_selfdistill.trainer.divergence import DivergenceTrainer


def sdpo_weights(
    student_logps: Float[Tensor, "B T"], old_logps: Float[Tensor, "B T"], *, clip: float
) -> Float[Tensor, "B T"]:
    """min(exp(s_t - s_t_old), clip), detached: the importance ratio of a token, bounded above. SDPO's released code.

    Args:
        student_logps: s_t in nats, of the policy in training.
        old_logps: s_t of the policy that wrote the rollouts; the difference is clamped to +-20.
        clip: the largest weight, at least 1.
    """
    return bounded_exp(student_logps - old_logps).clamp(max=clip)


@dataclass
class SDPOConfig(SelfDistillConfig):
    r"""
    Configuration of the [`SDPOTrainer`]: everything of [`SelfDistillConfig`], and what follows.

    Parameters:
        context (`str`, *optional*, defaults to `"peer_else_feedback"`):
            Another correct rollout of the group, else what was said of the rollout itself.
        context_thinking (`str`, *optional*, defaults to `"remove"`): The other rollout is shown without its thinking.
        teacher_model_kind (`str`, *optional*, defaults to `"ema"`):
            The paper's teacher is an average of the policy, with `teacher_update_rate` 0.05.
        sdpo_beta (`float`, *optional*, defaults to `0.5`):
            0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher), between lies the generalised JSD.
        sdpo_ratio_clip (`float`, *optional*, defaults to `2.0`):
            Largest importance ratio of a token, at least 1, where the policy has moved on from its rollouts.
    """

    context: str = field(default="peer_else_feedback", metadata={"help": "What the teacher sees."})
    context_thinking: str = field(default="remove", metadata={"help": "The thinking part of the other rollout."})
    teacher_model_kind: str = field(default="ema", metadata={"help": "Whose weights score: 'ema', 'live' or 'base'."})
    sdpo_beta: float = field(
        default=0.5, metadata={"help": "0: KL(teacher||student); 1: KL(student||teacher); between: JSD. Paper: 0.5."}
    )
    sdpo_ratio_clip: float = field(default=2.0, metadata={"help": "Largest importance ratio of a token. Code: 2."})

    def check(self) -> None:
        super().check()
        check_no_policy_loss(self, way_out="train with OPSDTrainer and opsd_policy_weight > 0, which adds GRPO's loss")
        in_range("sdpo_beta", self.sdpo_beta, 0.0, 1.0)
        if not self.sdpo_ratio_clip >= 1:
            raise ValueError(f"sdpo_ratio_clip={self.sdpo_ratio_clip} must be at least 1: it bounds a ratio.")


@final
class SDPOTrainer(DivergenceTrainer):
    """Self-distillation toward the policy that has seen a right rollout or feedback. The arguments are those of
    [`~trl.GRPOTrainer`], plus `context_builder`. The rewards only tell what is right.

    Differs: the divergence is over the whole vocabulary, where the paper takes the student's 100 likeliest tokens and
    one for the rest; "first" means first in an order that the group's seed draws.
    """

    config_class = SDPOConfig
    args: SDPOConfig
    equation = r"L = \mathrm{mean}_t\, \min(\rho_t, c)\, \mathrm{JSD}_\beta(\pi_T \Vert \pi_S)_t"
    _tag_names = ["trl", "trl-selfdistill", "sdpo"]
    _name = "SDPO"
    _paper = {
        "title": "Reinforcement Learning via Self-Distillation",
        "id": "2601.20802",
        "citation": textwrap.dedent("""\
            @article{hubotter2026reinforcement,
                title  = {{Reinforcement Learning via Self-Distillation}},
                author = {Jonas H{\\"u}botter and Frederike L{\\"u}beck and Lejs Behric and others},
                year   = 2026,
                eprint = {arXiv:2601.20802},
            }"""),
    }
    templates = {
        "user": "{prompt}\n\n{context}\n\nNow solve the problem above correctly.",
        "system": "About the problem that follows:\n\n{context}\n\nSolve the problem correctly.",
    }

    def contexts(self, rollout: Rollout) -> Mapping[str, Any]:
        made = as_context(self.context_builder(rollout), maker="The context builder")
        if made is None or made.text is None or self.memory or self.args.teacher_template is not None:
            return {"teacher": made}  # the template says what the text is
        failed = " that failed" if rollout.assessed and not (rollout.correct or rollout.passed) else ""
        head = f"Feedback on an earlier attempt{failed}:" if made.source == "feedback" else "A correct solution:"
        return {"teacher": Context(f"{head}\n\n{made.text}", made.source)}

    def divergence_settings(self) -> dict[str, Any]:
        return {"beta": self.args.sdpo_beta}

    def weighs_tokens(self, batch: dict[str, Any]) -> bool:
        return "old_per_token_logps" in batch

    def token_weights(self, scores: TokenScores) -> Float[Tensor, "B T"]:
        assert scores.old_logps is not None
        return sdpo_weights(scores.student_logps, scores.old_logps, clip=self.args.sdpo_ratio_clip)

    def divergence_metrics(self, output: DivergenceOutput) -> dict[str, Tensor]:
        return {"sdpo/divergence": output.divergence}
