"""PowerOPD, distillation with a bounded reward (https://huggingface.co/papers/2606.17199).

The reward of a token is how much more probable the teacher finds it: a difference of powers of probabilities, where the
log-ratio knows no bound.
"""

import textwrap
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.grpo_settings import check_token_signal
from trl_selfdistill.maths import TokenScores, masked_fill_nan
from trl_selfdistill.trainer.rewardless import rewards_or_none
from trl_selfdistill.trainer.token_signal import TokenSignalTrainer


def power_opd_rewards(
    student_logps: Float[Tensor, "B T"], teacher_logps: Float[Tensor, "B T"], *, alpha: float
) -> Float[Tensor, "B T"]:
    """r_t = pi_T(y_t)^alpha - pi_S(y_t)^alpha, in [-1, 1]. PowerOPD, without a factor 1/alpha, as in the code.

    Args:
        student_logps: s_t in nats.
        teacher_logps: t_t in nats.
        alpha: positive. r_t / alpha tends to u_t = t_t - s_t as alpha tends to 0.

    Returns token rewards with the sign of u_t, detached, in at least float32.
    """
    dtype = torch.promote_types(student_logps.dtype, torch.float32)
    student, teacher = (logps.detach().to(dtype) for logps in (student_logps, teacher_logps))
    return (alpha * teacher).exp() - (alpha * student).exp()


@dataclass
class PowerOPDConfig(SelfDistillConfig):
    r"""
    Configuration of the [`PowerOPDTrainer`]: everything of [`SelfDistillConfig`], and what follows.

    Parameters:
        teacher_model_kind (`str`, *optional*, defaults to `"base"`):
            The paper's teacher does not move.
        power_opd_alpha (`float`, *optional*, defaults to `5.0`):
            α, the power of the probabilities, positive.
        power_opd_strength (`float`, *optional*, defaults to `1.0`):
            Weight of the token reward, at least 0. It is added to GRPO's advantage, which is 0 without `reward_funcs`.
            0 is GRPO.
    """

    teacher_model_kind: str = field(default="base", metadata={"help": "Whose weights score: 'base', 'live' or 'ema'."})
    power_opd_alpha: float = field(default=5.0, metadata={"help": "Power of the probabilities, positive. Code: 5."})
    power_opd_strength: float = field(
        default=1.0, metadata={"help": "Weight of the token reward beside GRPO's advantage. 0 is GRPO. Paper: 1."}
    )

    def check(self) -> None:
        super().check()
        check_token_signal(self, keeps_sign=False)
        if not self.power_opd_alpha > 0:
            raise ValueError(f"power_opd_alpha={self.power_opd_alpha} must be positive.")
        if not self.power_opd_strength >= 0:
            raise ValueError(f"power_opd_strength={self.power_opd_strength} must not be negative.")


@final
class PowerOPDTrainer(TokenSignalTrainer):
    """On-policy distillation with PowerOPD's bounded token rewards, from a teacher that knows the solution.

    The arguments are those of [`~trl.GRPOTrainer`], plus `context_builder`. `reward_funcs` may be left out; given,
    their group-normalised advantage is added. The dataset has a `privileged_context` (or `solution`) column.

    Differs: the paper's teacher is a larger model without a hint, here it is the policy at the start with the solution;
    the loss is GRPO's, whose ratio is 1 on fresh rollouts, where the paper has the plain policy gradient.
    """

    config_class = PowerOPDConfig
    args: PowerOPDConfig
    equation = r"A_t = A + \lambda\,(\pi_T(y_t)^\alpha - \pi_S(y_t)^\alpha)"
    _tag_names = ["trl", "trl-selfdistill", "poweropd"]
    _name = "PowerOPD"
    _paper = {
        "title": "PowerOPD: Stabilizing On-Policy Distillation with Bounded Power Transformation",
        "id": "2606.17199",
        "citation": textwrap.dedent("""\
            @article{zhao2026poweropd,
                title  = {{PowerOPD: Stabilizing On-Policy Distillation with Bounded Power Transformation}},
                author = {Anhao Zhao and Junlong Tong and Yingqi Fan and Ping Nie and Wenjie Li and Xiaoyu Shen},
                year   = 2026,
                eprint = {arXiv:2606.17199},
            }"""),
    }

    @property
    def learns_from_rewards(self) -> bool:
        return self.has_rewards

    @property
    def untaught(self) -> str:
        return "plain GRPO" if self.learns_from_rewards else "training on nothing"

    @staticmethod
    def rewards_for(reward_funcs: Any, args: PowerOPDConfig) -> Any:
        return rewards_or_none(reward_funcs, args)

    def token_advantages(
        self, advantages: Float[Tensor, " B"], scores: TokenScores
    ) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
        rewards = power_opd_rewards(scores.student_logps, scores.teacher_logps, alpha=self.args.power_opd_alpha)
        shaped = advantages.unsqueeze(1) + self.args.power_opd_strength * rewards
        return shaped, {"poweropd/reward": masked_fill_nan(rewards, scores.mask)}
