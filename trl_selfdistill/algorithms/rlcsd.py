"""RLCSD, contrastive self-distillation (https://huggingface.co/papers/2606.11709).

What a right and a wrong hint have in common is style. Their difference says which tokens decide the answer.
"""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.context.builders import as_context
from trl_selfdistill.context.rollout import Context, Rollout
from trl_selfdistill.grpo_settings import check_token_signal
from trl_selfdistill.maths import TokenScores, masked_fill_nan, mean_logps
from trl_selfdistill.settings import in_range
from trl_selfdistill.trainer.token_signal import TokenSignalTrainer


def rlcsd_advantages(
    advantages: Float[Tensor, " B"],
    right_logps: Float[Tensor, "B T"],
    wrong_logps: Float[Tensor, "B K T"],
    *,
    beta: float,
    strength: float,
    temperature: float,
    threshold: float,
) -> Float[Tensor, "B T"]:
    """A_t = A + r_t where |r_t| > threshold, else A; never with another sign than A, and 0 where A is 0. RLCSD.

    r_t = clip(beta strength tanh(e_t / temperature), +-2), e_t = log pi_T(y_t|right) - log mean_k pi_T(y_t|wrong_k), in
    nats. NaN marks a hint that a row lacks: without right or any wrong one A_t = A. Strength 0 is GRPO. Detached.
    """
    plain, contrast = advantages.detach().unsqueeze(1), right_logps.detach().double() - mean_logps(wrong_logps)
    r = (beta * strength * (contrast / temperature).tanh()).clamp(-2.0, 2.0)
    shaped = (plain + torch.where(r.abs() > threshold, r, 0.0)).to(plain.dtype)
    return torch.where(plain > 0, shaped.clamp(min=0.0), shaped.clamp(max=0.0)) * (plain != 0)


@dataclass
class RLCSDConfig(SelfDistillConfig):
    r"""
    Configuration of the [`RLCSDTrainer`]: everything of [`SelfDistillConfig`], and what follows.

    Parameters:
        context (`str`, *optional*, defaults to `"peer"`): The right hint: a correct rollout of the group.
        teacher_model_kind (`str`, *optional*, defaults to `"ema"`): With rate 1 every 10 steps: a copy of the policy.
        rlcsd_strength (`float`, *optional*, defaults to `0.5`): λ, at least 0. 0 is GRPO.
        rlcsd_beta (`float`, *optional*, defaults to `1.0`): β, another factor of the residual.
        rlcsd_temperature (`float`, *optional*, defaults to `0.02`): τ in nats: a contrast beyond it saturates.
        rlcsd_threshold (`float`, *optional*, defaults to `0.02`): δ: smaller residuals are left out.
        rlcsd_wrong_peers (`int`, *optional*, defaults to `4`): K, the most wrong hints per rollout, 1 to 4.
    """

    context: str = field(default="peer", metadata={"help": "The right hint: 'peer', 'gold', 'peer_else_gold', ..."})
    teacher_model_kind: str = field(default="ema", metadata={"help": "Whose weights score: 'ema', 'live' or 'base'."})
    teacher_update_rate: float = field(default=1.0, metadata={"help": "Share of the policy in each update. 1: a copy."})
    teacher_sync_steps: int = field(default=10, metadata={"help": "Optimiser steps between updates. Code: 10."})
    rlcsd_strength: float = field(default=0.5, metadata={"help": "Lambda, at least 0. 0 is GRPO. Code: 0.5."})
    rlcsd_beta: float = field(default=1.0, metadata={"help": "Another factor of the residual. Code: 1."})
    rlcsd_temperature: float = field(default=0.02, metadata={"help": "Contrast (nats) that saturates. Code: 0.02."})
    rlcsd_threshold: float = field(default=0.02, metadata={"help": "Smaller residuals are left out. Code: 0.02."})
    rlcsd_wrong_peers: int = field(default=4, metadata={"help": "Most wrong hints per rollout, 1 to 4. Code: 4."})

    def check(self) -> None:
        super().check()
        check_token_signal(self, keeps_sign=True)
        limits = {"strength": (0, inf), "beta": (0, inf), "threshold": (0, inf), "wrong_peers": (1, 4)}
        for name, bounds in {**limits, "temperature": (1e-6, inf)}.items():
            in_range(f"rlcsd_{name}", getattr(self, f"rlcsd_{name}"), *bounds)
        if self.num_generations == 2 and self.context in ("peer", "own_peer"):
            raise ValueError("num_generations=2: no rollout has both a right and a wrong peer. Set at least 3.")


@final
class RLCSDTrainer(TokenSignalTrainer):
    """GRPO with RLCSD's token advantages. The arguments are those of [`~trl.GRPOTrainer`], plus `context_builder`,
    which makes the right hint. The wrong ones are finished wrong rollouts of the group. Rows without both stay GRPO.

    Differs: one token mean, TRL's, where the paper takes the selected tokens' apart.
    """

    config_class = RLCSDConfig
    args: RLCSDConfig
    views = ("right", "wrong_1", "wrong_2", "wrong_3", "wrong_4")
    equation = r"A_t = A + r_t\,[|r_t| > \delta], \quad r_t = \beta\lambda \tanh(e_t / \tau)"
    _tag_names = ["trl", "trl-selfdistill", "rlcsd"]
    _name = "RLCSD"
    _paper = {
        "title": "RLCSD: Reinforcement Learning with Contrastive On-Policy Self-Distillation",
        "id": "2606.11709",
        "citation": textwrap.dedent("""\
            @article{pan2026rlcsd,
                title  = {{RLCSD: Reinforcement Learning with Contrastive On-Policy Self-Distillation}},
                author = {Leyi Pan and Shuchang Tao and Yunpeng Zhai and Lingzhe Zhang and others},
                year   = 2026,
                eprint = {arXiv:2606.11709},
            }"""),
    }

    def contexts(self, rollout: Rollout) -> Mapping[str, Any]:
        right = as_context(self.context_builder(rollout), maker="The context builder")
        wrong: list[Any] = [Context(text, "wrong_peer") for text in rollout.wrong_peers[: self.args.rlcsd_wrong_peers]]
        wrong = [right] if right and right.text is None else wrong  # without a hint on one side, none on the other
        return {} if right is None or not wrong else dict(zip(self.views, [right, *wrong], strict=False))

    def token_advantages(
        self, advantages: Float[Tensor, " B"], scores: TokenScores
    ) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
        settings: Any = {n: getattr(self.args, f"rlcsd_{n}") for n in ("beta", "strength", "temperature", "threshold")}
        right, *wrong = (masked_fill_nan(view.logps, view.mask) for view in scores.views.values())
        shaped = rlcsd_advantages(advantages, right, torch.stack(wrong, dim=1), **settings)
        added = masked_fill_nan(shaped - advantages.unsqueeze(1), scores.mask)
        return shaped, {"rlcsd/residual": added, "rlcsd/selected": masked_fill_nan((added != 0).float(), scores.mask)}
