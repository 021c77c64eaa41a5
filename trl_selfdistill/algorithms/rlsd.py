"""RLSD, self-distilled RLVR (https://huggingface.co/papers/2604.03128).

The return says which way, the teacher says how far: tokens that a teacher with the solution at hand also wants get more
of the credit, and less of the blame.
"""

import textwrap
from dataclasses import dataclass, field
from typing import final

from jaxtyping import Bool, Float
from torch import Tensor

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.grpo_settings import check_token_signal
from trl_selfdistill.maths import TokenScores, bounded_exp, clipped_weights, weight_metrics
from trl_selfdistill.settings import in_range
from trl_selfdistill.trainer.token_signal import TokenSignalTrainer


def rlsd_weights(advantages: Float[Tensor, " B"], log_ratio: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """w_t = exp(sign(A) u_t), before the clip; the exponent is clamped to +-20. RLRT's has the other sign."""
    return bounded_exp(advantages.detach().sign().unsqueeze(1) * log_ratio)


def rlsd_advantages(
    advantages: Float[Tensor, " B"], log_ratio: Float[Tensor, "B T"], *, strength: float, clip: float
) -> Float[Tensor, "B T"]:
    """A_t = A [(1 - strength) + strength * clip(w_t, 1 - clip, 1 + clip)] on every rollout. RLSD, Eq. 16.

    Args:
        advantages: group-normalised advantage A of each rollout.
        log_ratio: u_t = t_t - s_t in nats, 0 where there is no teacher.
        strength: lambda in [0, 1]; 0 is GRPO.
        clip: epsilon_w in (0, 1].

    Returns token advantages with the sign of A and |A_t| in |A| [1 - strength * clip, 1 + strength * clip], detached.
    """
    weights = clipped_weights(rlsd_weights(advantages, log_ratio), clip=clip)
    return advantages.detach().unsqueeze(1) * (1.0 + strength * (weights - 1.0))


def rlsd_strength(step: int, *, start: float, decay_steps: int) -> float:
    """lambda after `step` optimiser steps: from `start` in a straight line to 0; 0 `decay_steps` leave it there."""
    return start * max(0.0, 1.0 - step / decay_steps) if decay_steps else start


@dataclass
class RLSDConfig(SelfDistillConfig):
    r"""
    Configuration of the [`RLSDTrainer`]: everything of [`SelfDistillConfig`], and what follows.

    Parameters:
        teacher_model_kind (`str`, *optional*, defaults to `"ema"`):
            With `teacher_update_rate=1.0` and `teacher_sync_steps=20`: a copy of the policy, renewed every 20 steps.
        rlsd_strength (`float`, *optional*, defaults to `0.5`):
            λ at the start, the share of the advantage that the teacher scales, in [0, 1]. 0 is GRPO.
        rlsd_clip (`float`, *optional*, defaults to `0.2`):
            ε_w, half-width of the range of the token weights, in (0, 1].
        rlsd_decay_steps (`int`, *optional*, defaults to `60`):
            Optimiser steps in which λ falls to 0, in a straight line. 0: it stays.
    """

    teacher_model_kind: str = field(default="ema", metadata={"help": "Whose weights score: 'ema', 'live' or 'base'."})
    teacher_update_rate: float = field(default=1.0, metadata={"help": "Share of the policy in each update. 1: a copy."})
    teacher_sync_steps: int = field(default=20, metadata={"help": "Optimiser steps between updates. Code: 20."})
    rlsd_strength: float = field(default=0.5, metadata={"help": "Lambda at the start, in [0, 1]. 0: GRPO. Code: 0.5."})
    rlsd_clip: float = field(default=0.2, metadata={"help": "Half-width of the weights' range, in (0, 1]. Code: 0.2."})
    rlsd_decay_steps: int = field(default=60, metadata={"help": "Steps until lambda is 0; 0: it stays. Code: 60."})

    def check(self) -> None:
        super().check()
        check_token_signal(self, keeps_sign=True)
        in_range("rlsd_strength", self.rlsd_strength, 0.0, 1.0)
        if not 0.0 < self.rlsd_clip <= 1.0:
            raise ValueError(f"rlsd_clip={self.rlsd_clip} must be in (0, 1]: above 1 an advantage could change sign.")
        if self.rlsd_decay_steps < 0:
            raise ValueError(f"rlsd_decay_steps={self.rlsd_decay_steps} must not be negative; 0 keeps the strength.")


@final
class RLSDTrainer(TokenSignalTrainer):
    """GRPO with RLSD's token advantages. The arguments are those of [`~trl.GRPOTrainer`], plus `context_builder`.

    `args` is an [`RLSDConfig`]. The dataset has a `privileged_context` (or `solution`) column.

    Differs: a plain clip, as in the released code, where the paper prints a minimum of two terms.
    """

    config_class = RLSDConfig
    args: RLSDConfig
    equation = (
        r"A_t = A\,[(1 - \lambda) + \lambda\,\mathrm{clip}(e^{\mathrm{sign}(A)\,u_t}, 1 - \epsilon_w, 1 + \epsilon_w)]"
    )
    _tag_names = ["trl", "trl-selfdistill", "rlsd"]
    _name = "RLSD"
    _paper = {
        "title": "Self-Distilled RLVR",
        "id": "2604.03128",
        "citation": textwrap.dedent("""\
            @article{yang2026selfdistilled,
                title  = {{Self-Distilled RLVR}},
                author = {Chenxu Yang and Chuanyu Qin and Qingyi Si and Minghui Chen and Naibin Gu and Dingyu Yao and
                          Zheng Lin and Weiping Wang and Jiaqi Wang and Nan Duan},
                year   = 2026,
                eprint = {arXiv:2604.03128},
            }"""),
    }

    def is_used(self, advantages: Float[Tensor, " B"], correct: Bool[Tensor, " B"]) -> Bool[Tensor, " B"]:
        return advantages != 0

    def token_advantages(
        self, advantages: Float[Tensor, " B"], scores: TokenScores
    ) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
        args, u = self.args, scores.log_ratio
        strength = rlsd_strength(scores.step, start=args.rlsd_strength, decay_steps=args.rlsd_decay_steps)
        self.add_metrics({"rlsd/strength": strength})
        shaped = rlsd_advantages(advantages, u, strength=strength, clip=args.rlsd_clip)
        return shaped, weight_metrics("rlsd", rlsd_weights(advantages, u), scores.mask, clip=args.rlsd_clip)
