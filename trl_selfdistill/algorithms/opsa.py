"""OPSA, on-policy self-adaptation (https://huggingface.co/papers/2608.31046): the control without a teacher.

Of the tokens that the policy wrote, push down the fifth that it found least likely. No teacher, no reward, no solution:
what a privileged teacher adds has to show against this. The formula is that of the paper's released code.
"""

import textwrap
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.grpo_settings import check_token_signal
from trl_selfdistill.maths import TokenScores, masked_fill_nan
from trl_selfdistill.teacher_config import check_no_teacher
from trl_selfdistill.trainer.rewardless import allow_one_rollout, rewards_or_none
from trl_selfdistill.trainer.token_signal import TokenSignalTrainer


def opsa_advantages(
    student_logps: Float[Tensor, "B T"],
    student_entropy: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    fraction: float,
) -> Float[Tensor, "B T"]:
    """A_t = -1/2 - 1/2 (H_t - min H) / (max H - min H) on the least likely tokens, 0 on the others. OPSA.

    The selected are the max(1, floor(fraction * N)) of the N tokens with the lowest s_t; min and max are over them.

    Args:
        student_logps: s_t in nats.
        student_entropy: H_t of the student's next-token distribution, nats.
        mask: the N tokens that count.
        fraction: in (0, 1].

    Returns token advantages, 0 or in [-1, -1/2]; -1 on all selected ones where their entropies are equal. Detached.
    """
    places = mask.flatten().nonzero().squeeze(1)
    shaped = torch.zeros(mask.numel(), device=mask.device)
    if len(places):
        count = max(1, int(fraction * len(places)))
        chosen = places[student_logps.detach().flatten()[places].argsort(stable=True)[:count]]
        entropy = student_entropy.detach().float().flatten()[chosen]
        low, high = entropy.min(), entropy.max()
        shaped[chosen] = -0.5 - 0.5 * ((entropy - low) / (high - low) if high > low else torch.ones_like(entropy))
    return shaped.view(mask.shape)


@dataclass
class OPSAConfig(SelfDistillConfig):
    r"""
    Configuration of the [`OPSATrainer`]: everything of [`SelfDistillConfig`], and what follows.

    Parameters:
        context (`str`, *optional*, defaults to `"none"`):
            No teacher is asked. Another value is refused, and so is each setting that only a teacher reads.
        opsa_fraction (`float`, *optional*, defaults to `0.2`):
            Share of the tokens that are pushed down, in (0, 1].
    """

    context: str = field(default="none", metadata={"help": "'none' alone: OPSA asks no teacher."})
    opsa_fraction: float = field(default=0.2, metadata={"help": "Share of tokens pushed down, in (0, 1]. Paper: 0.2."})

    def __post_init__(self) -> None:
        allow_one_rollout(self, super().__post_init__)

    def check(self) -> None:
        super().check()
        check_no_teacher(self)
        check_token_signal(self, keeps_sign=False)
        if not 0.0 < self.opsa_fraction <= 1.0:
            raise ValueError(f"opsa_fraction={self.opsa_fraction} must be in (0, 1].")


@final
class OPSATrainer(TokenSignalTrainer):
    """OPSA: GRPO's loss with negative advantages on the tokens that the policy found least likely.

    The arguments are those of [`~trl.GRPOTrainer`]. `reward_funcs` may be left out; given, they are only logged.

    Differs: tokens are selected among those of a micro-batch in all processes, where the released code takes those of
    a process's step; the loss is divided by all tokens, where the released code counts the selected ones.
    """

    config_class = OPSAConfig
    args: OPSAConfig
    views = ()
    learns_from_rewards = False
    equation = r"A_t = -\tfrac12 - \tfrac12\,\frac{H_t - \min H}{\max H - \min H}\ \text{on the least likely fifth}"
    _tag_names = ["trl", "trl-selfdistill", "opsa"]
    _name = "OPSA"
    _paper = {
        "title": "Does On-Policy Distillation Really Distill? From Noisy Teacher to Self-Improvement",
        "id": "2608.31046",
        "citation": textwrap.dedent("""\
            @article{ding2026does,
                title  = {{Does On-Policy Distillation Really Distill? From Noisy Teacher to Self-Improvement}},
                author = {Yi Ding and Ruqi Zhang},
                year   = 2026,
                eprint = {arXiv:2608.31046},
            }"""),
    }

    @staticmethod
    def rewards_for(reward_funcs: Any, args: OPSAConfig) -> Any:
        return rewards_or_none(reward_funcs, args)

    def token_advantages(
        self, advantages: Float[Tensor, " B"], scores: TokenScores
    ) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
        logps, entropy = self.gathered(scores.student_logps), self.gathered(scores.student_entropy)
        mask = self.gathered(scores.mask.int()).bool()
        everywhere = opsa_advantages(logps, entropy, mask, fraction=self.args.opsa_fraction)
        shaped = self.own_part(everywhere, scores.mask)
        return shaped, {"opsa/advantage": masked_fill_nan(shaped, shaped < 0)}
