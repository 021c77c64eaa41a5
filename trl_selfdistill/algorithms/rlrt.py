"""RLRT, "RLVR with a Reversed Teacher" (https://huggingface.co/papers/2605.10781).

On correct rollouts, reinforce the tokens that a teacher with privileged context would *not* have predicted: the
student's own reasoning.
"""

import textwrap
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.grpo_settings import check_token_signal
from trl_selfdistill.maths import TokenScores, bounded_exp, clipped_weights, weight_metrics
from trl_selfdistill.settings import in_range
from trl_selfdistill.trainer.token_signal import TokenSignalTrainer


def rlrt_weights(advantages: Float[Tensor, " B"], log_ratio: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """w_t = exp(sign(A) (s_t - t_t)) = exp(-sign(A) u_t), before the clip; the exponent is clamped to +-20.

    Above 1 where the token moves the return the right way *against* the teacher's expectation. In (0, exp(20)].
    """
    return bounded_exp(-advantages.detach().sign().unsqueeze(1) * log_ratio)


def rlrt_advantages(
    advantages: Float[Tensor, " B"],
    log_ratio: Float[Tensor, "B T"],
    correct: Bool[Tensor, " B"],
    *,
    strength: float,
    clip: float,
) -> Float[Tensor, "B T"]:
    """A_t = A [(1 - strength) + strength * clip(w_t, 1 - clip, 1 + clip)] on correct rollouts, A_t = A on the others.

    w_t = exp(sign(A) (s_t - t_t)), see `rlrt_weights`. RLRT, https://huggingface.co/papers/2605.10781.

    Args:
        advantages: group-normalised advantage A of each rollout.
        log_ratio: u_t = t_t - s_t in nats (`maths.log_ratio`), 0 where there is no teacher.
        correct: raw correctness; wrong rollouts stay plain GRPO. Without this gate training diverges.
        strength: lambda in [0, 1]; 0 is GRPO.
        clip: epsilon_w in (0, 1].

    Returns token advantages with the sign of A and |A_t| in |A| [1 - strength * clip, 1 + strength * clip], detached.
    """
    sequence = advantages.detach().unsqueeze(1).expand_as(log_ratio)
    weights = clipped_weights(rlrt_weights(advantages, log_ratio), clip=clip)
    # `1 + strength * (w - 1)` is the same number as in the formula, and exactly 1 when strength is 0 or w is 1.
    shaped = sequence * (1.0 + strength * (weights - 1.0))
    return torch.where(correct.unsqueeze(1), shaped, sequence)


@dataclass
class RLRTConfig(SelfDistillConfig):
    r"""
    Configuration of the [`RLRTTrainer`]: everything of [`SelfDistillConfig`], and what follows.

    Parameters:
        context (`str`, *optional*, defaults to `"peer"`):
            The paper shows the teacher a correct rollout of the model's own.
        rlrt_strength (`float`, *optional*, defaults to `0.5`):
            λ, the share of the advantage that the teacher's opinion scales, in [0, 1]. 0 is GRPO.
        rlrt_clip (`float`, *optional*, defaults to `1.0`):
            ε_w, half-width of the range of the token weights, in (0, 1]. The paper uses 1.0 for base checkpoints, 0.5
            for instruct ones and 0.2 for thinking ones.
    """

    context: str = field(
        default="peer",
        metadata={"help": "What the teacher sees: 'peer', 'peer_else_gold', 'gold' or the dotted path of a function."},
    )
    rlrt_strength: float = field(
        default=0.5,
        metadata={"help": "Lambda in [0, 1]: how far the teacher scales the advantage. 0 is GRPO. Paper: 0.5."},
    )
    rlrt_clip: float = field(
        default=1.0,
        metadata={
            "help": "Half-width of the token weights' range, in (0, 1]. Paper: 1.0 base, 0.5 instruct, 0.2 thinking."
        },
    )

    def check(self) -> None:
        super().check()
        check_token_signal(self, keeps_sign=True)
        in_range("rlrt_strength", self.rlrt_strength, 0.0, 1.0)
        if not 0.0 < self.rlrt_clip <= 1.0:
            raise ValueError(f"rlrt_clip={self.rlrt_clip} must be in (0, 1]: above 1 an advantage could change sign.")


@final
class RLRTTrainer(TokenSignalTrainer):
    """GRPO with RLRT's token advantages.

    The arguments are those of [`~trl.GRPOTrainer`], plus `context_builder`, a function
    `Rollout -> Context | str | None` that takes the place of `args.context`. `args` is an [`RLRTConfig`]; a
    plain [`~trl.GRPOConfig`] gets RLRT's defaults.

    Differs: a rollout is never its own context and one peer is drawn per group (the paper does not say); the teacher
    has the live weights by default (it does not say that either).

    Example:

    ```python
    from datasets import load_dataset
    from trl.rewards import accuracy_reward
    from trl_selfdistill import RLRTTrainer

    trainer = RLRTTrainer(
        model="Qwen/Qwen3-0.6B",
        reward_funcs=accuracy_reward,
        train_dataset=load_dataset("trl-lib/DeepMath-103K", split="train"),
    )
    trainer.train()
    ```
    """

    config_class = RLRTConfig
    args: RLRTConfig

    equation = (
        r"A_t = A\,[(1 - \lambda) + \lambda\,\mathrm{clip}(e^{-\mathrm{sign}(A)\,u_t}, 1 - \epsilon_w, 1 + \epsilon_w)]"
    )
    _tag_names = ["trl", "trl-selfdistill", "rlrt"]
    _name = "RLRT"
    _paper = {
        "title": "Rebellious Student: Reversing Teacher Signals for Reasoning Exploration with Self-Distilled RLVR",
        "id": "2605.10781",
        "citation": textwrap.dedent("""\
            @article{kim2026rebellious,
                title  = {{Rebellious Student: Reversing Teacher Signals for Reasoning Exploration
                           with Self-Distilled RLVR}},
                author = {Jeonghye Kim and Jiwon Jeon and Dongsheng Li and Yuqing Yang},
                year   = 2026,
                eprint = {arXiv:2605.10781},
            }"""),
    }

    def is_used(self, advantages: Float[Tensor, " B"], correct: Bool[Tensor, " B"]) -> Bool[Tensor, " B"]:
        return correct & (advantages != 0)

    def token_advantages(
        self, advantages: Float[Tensor, " B"], scores: TokenScores
    ) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
        clip = self.args.rlrt_clip
        shaped = rlrt_advantages(
            advantages, scores.log_ratio, scores.correct, strength=self.args.rlrt_strength, clip=clip
        )
        weights = rlrt_weights(advantages, scores.log_ratio)
        weighted = scores.mask & scores.correct.unsqueeze(1)
        return shaped, weight_metrics("rlrt", weights, weighted, clip=clip)
