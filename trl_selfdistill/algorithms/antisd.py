"""AntiSD, anti-self-distillation (https://huggingface.co/papers/2605.11609).

Ascend the divergence from a teacher with privileged context: the tokens that it takes for granted lose, and the
deliberation that it no longer needs gains, by a bounded amount and only while the teacher's entropy holds.
"""

import textwrap
from dataclasses import asdict, dataclass, field, replace
from math import isnan
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.context.builders import resolve_function, verdict
from trl_selfdistill.grpo_settings import check_token_signal
from trl_selfdistill.maths import EntropyGate, TokenScores, masked_fill_nan, phi
from trl_selfdistill.settings import in_range
from trl_selfdistill.trainer.token_signal import TokenSignalTrainer


def antisd_advantages(
    advantages: Float[Tensor, " B"], log_ratio: Float[Tensor, "B T"], *, strength: float
) -> Float[Tensor, "B T"]:
    """A_t = A - strength * phi(u_t), phi(u) = (softplus(u) - log 2) / 2. AntiSD, Eq. 6 and Algorithm 1.

    In expectation over the vocabulary, -phi(u) grad log pi_S is the gradient of JSD(student, teacher).
    https://huggingface.co/papers/2605.11609.

    Args:
        advantages: group-normalised advantage A of each rollout; the term stays where A = 0.
        log_ratio: u_t = t_t - s_t in nats (`maths.log_ratio`).
        strength: lambda, at least 0; 0 is GRPO.

    Returns token advantages, detached. A token's bonus is at most strength * log(2) / 2; its penalty is not bounded.
    """
    return advantages.detach().unsqueeze(1) - strength * phi(log_ratio.detach())


def toward_advantages(
    advantages: Float[Tensor, " B"], log_ratio: Float[Tensor, "B T"], *, strength: float
) -> Float[Tensor, "B T"]:
    """A_t = A + strength * u_t: the policy-gradient form of self-distillation, AntiSD's baseline (Eq. 2)."""
    return advantages.detach().unsqueeze(1) + strength * log_ratio.detach()


@dataclass
class AntiSDConfig(SelfDistillConfig):
    r"""
    Configuration of the [`AntiSDTrainer`]: everything of [`SelfDistillConfig`], and what follows.

    Parameters:
        context (`str`, *optional*, defaults to `"peer_else_gold"`):
            The paper shows the teacher a correct rollout of the group, and the dataset's solution where there is none.
        antisd_strength (`float`, *optional*, defaults to `0.5`):
            λ_max, the strength while the gate is open. 0 is GRPO.
        antisd_warmup (`int`, *optional*, defaults to `5`):
            Generation batches that only measure the teacher's entropy, with λ = 0.
        antisd_close_ratio (`float`, *optional*, defaults to `0.93`):
            The gate closes when the teacher's median entropy falls below this share of the warm-up's, in [0, 1]. 0
            never closes it.
        antisd_direction (`str`, *optional*, defaults to `"away"`):
            `"toward"` is the baseline: A + λ u, without warm-up and gate.
        antisd_feedback (`str`, *optional*):
            Dotted path of a function `Rollout -> str | None` that says how the rollout fared ("passes 7 of 12 tests").
            `None`, also as its answer: the row's `feedback` column where it has one, else whether the rollout was
            correct.
    """

    context: str = field(
        default="peer_else_gold",
        metadata={"help": "What the teacher sees: 'peer_else_gold', 'peer', 'gold' or the dotted path of a function."},
    )
    antisd_strength: float = field(
        default=0.5, metadata={"help": "Lambda while the gate is open, at least 0. 0 is GRPO. Paper: 0.5."}
    )
    antisd_warmup: int = field(
        default=5, metadata={"help": "Generation batches that only measure the teacher's entropy. Paper: 5."}
    )
    antisd_close_ratio: float = field(
        default=0.93,
        metadata={"help": "The gate closes below this share of the warm-up's entropy; 0 never closes it. Paper: 0.93."},
    )
    antisd_direction: str = field(
        default="away",
        metadata={"help": "'away', or 'toward' for the self-distillation baseline.", "choices": ["away", "toward"]},
    )
    antisd_feedback: str | None = field(
        default=None,
        metadata={"help": "Dotted path of a function Rollout -> str: how the rollout fared. None: column or verdict."},
    )

    def check(self) -> None:
        super().check()
        check_token_signal(self, keeps_sign=False, gated=self.antisd_direction == "away")
        if not self.antisd_strength >= 0:
            raise ValueError(f"antisd_strength={self.antisd_strength} is negative. antisd_direction='toward' turns it.")
        if self.antisd_warmup < 1:
            raise ValueError(f"antisd_warmup={self.antisd_warmup}: at least 1 batch is needed to measure the entropy.")
        in_range("antisd_close_ratio", self.antisd_close_ratio, 0.0, 1.0)
        if self.antisd_direction not in ("away", "toward"):
            raise ValueError(f"antisd_direction={self.antisd_direction!r} must be 'away' or 'toward'.")
        if self.antisd_feedback is not None:
            resolve_function(self.antisd_feedback, field="antisd_feedback")
            if self.teacher_template is not None and "{feedback}" not in self.teacher_template:
                raise ValueError("antisd_feedback is set, but teacher_template has no {feedback} to put it.")


@final
class AntiSDTrainer(TokenSignalTrainer):
    """GRPO with AntiSD's token advantages and its entropy gate.

    The arguments are those of [`~trl.GRPOTrainer`], plus `context_builder`, a function
    `Rollout -> Context | str | None` that takes the place of `args.context`. `args` is an [`AntiSDConfig`]; a
    plain [`~trl.GRPOConfig`] gets its defaults.

    Differs: a rollout is never its own context (the paper does not say); the gate opens right after the warm-up, whose
    entropies are joined by their median (likewise); rows with neither peer nor solution, or no reward, have no term.

    Example:

    ```python
    from datasets import load_dataset
    from trl.rewards import accuracy_reward
    from trl_selfdistill import AntiSDTrainer

    trainer = AntiSDTrainer(
        model="Qwen/Qwen3-4B-Instruct-2507",
        reward_funcs=accuracy_reward,
        train_dataset=load_dataset("trl-lib/DeepMath-103K", split="train"),
    )
    trainer.train()
    ```
    """

    config_class = AntiSDConfig
    args: AntiSDConfig

    equation = r"A_t = A - \lambda\,\varphi(u_t), \quad \varphi(u) = \tfrac12 (\mathrm{softplus}(u) - \log 2)"
    _tag_names = ["trl", "trl-selfdistill", "antisd"]
    _name = "AntiSD"
    _paper = {
        "title": "Anti-Self-Distillation for Reasoning RL via Pointwise Mutual Information",
        "id": "2605.11609",
        "citation": textwrap.dedent("""\
            @article{shen2026antiselfdistillation,
                title  = {{Anti-Self-Distillation for Reasoning RL via Pointwise Mutual Information}},
                author = {Guobin Shen and Xiang Cheng and Chenxiao Zhao and Lei Huang and Jindong Li and
                          Dongcheng Zhao and Xing Yu},
                year   = 2026,
                eprint = {arXiv:2605.11609},
            }"""),
    }
    templates = {
        "user": (
            "{prompt}\n\nAn attempt at this problem:\n\n{context}\n\nHow your answer was assessed: {feedback}\n\n"
            "Solve the problem step by step."
        ),
        "system": (
            "An attempt at the problem that follows:\n\n{context}\n\nHow your answer was assessed: {feedback}\n\n"
            "Solve the problem step by step."
        ),
    }

    def set_up(self) -> None:
        builder = self.context_builder  # TRL keeps rows without a reward from moving the policy; so does this
        self.context_builder = lambda rollout: builder(rollout) if rollout.assessed else None
        self.gate = EntropyGate(warmup=self.args.antisd_warmup, close_ratio=self.args.antisd_close_ratio)
        if self.args.antisd_feedback is not None:
            own = resolve_function(self.args.antisd_feedback, field="antisd_feedback")
            self.feedback = lambda rollout: verdict(rollout) if (text := own(rollout)) is None else text

    def state_values(self) -> dict[str, Any]:
        return {"gate": asdict(self.gate)}

    def load_state_values(self, values: dict[str, Any]) -> None:
        gate = EntropyGate(**values["gate"])
        if gate.warmup != self.gate.warmup:
            raise ValueError(
                f"antisd_warmup={self.gate.warmup}, but the checkpoint's gate was measured with {gate.warmup}. Resume "
                f"with antisd_warmup={gate.warmup}, or start a new run from the checkpoint's weights."
            )
        self.gate = replace(gate, close_ratio=self.gate.close_ratio)

    def token_advantages(
        self, advantages: Float[Tensor, " B"], scores: TokenScores
    ) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
        if self.args.antisd_direction == "toward":
            return toward_advantages(advantages, scores.log_ratio, strength=self.args.antisd_strength), {}
        if scores.training and scores.starts_batch:
            self.gate = self.gate.step(scores.median_entropy)
        strength = self.args.antisd_strength if self.gate.active else 0.0
        numbers = {"entropy": scores.median_entropy, "warm_entropy": self.gate.warm_entropy or float("nan")}
        self.add_metrics({"antisd/gate": float(self.gate.active), "antisd/strength": strength})
        self.add_metrics({f"antisd/{name}": value for name, value in numbers.items() if not isnan(value)})
        shaped = antisd_advantages(advantages, scores.log_ratio, strength=strength)
        return shaped, {"antisd/phi": masked_fill_nan(phi(scores.log_ratio), scores.mask)}
