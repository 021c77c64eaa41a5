"""OPSD, on-policy self-distillation (https://huggingface.co/papers/2601.18734).

Pull the student toward itself with the solution at hand, over the whole vocabulary, on its own rollouts. No reward.
"""

import math
import textwrap
from dataclasses import dataclass, field
from typing import Any, final

from jaxtyping import Bool, Float
from torch import Tensor

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.grpo_settings import check_no_policy_loss
from trl_selfdistill.maths import position_weights, skip_weights
from trl_selfdistill.ops import DivergenceOutput
from trl_selfdistill.settings import TEACHER_KINDS, in_range
from trl_selfdistill.trainer.divergence import DivergenceTrainer
from trl_selfdistill.trainer.rewardless import allow_one_rollout, no_reward, rewards_or_none

_INSTRUCTION = (
    "Make sure that you understand why each step of it holds. Then solve the problem in your own way and in your own "
    "words, step by step, and arrive at the same final answer."
)


@dataclass
class OPSDConfig(SelfDistillConfig):
    r"""
    Configuration of the [`OPSDTrainer`]: everything of [`SelfDistillConfig`], and what follows.

    Parameters:
        num_generations (`int`, *optional*, defaults to `1`):
            Rollouts a prompt. OPSD compares none, so one is enough.
        context (`str`, *optional*, defaults to `"gold"`):
            The paper shows the teacher the dataset's solution.
        teacher_model_kind (`str`, *optional*, defaults to `"base"`):
            The paper's teacher is the policy as it was at the start.
        opsd_beta (`float`, *optional*, defaults to `0.0`):
            0 is KL(teacher ‖ student), the paper's; 1 is KL(student ‖ teacher); between, the generalised JSD.
        opsd_entry_clip (`float`, *optional*):
            τ in nats, upper bound of each vocabulary entry of the divergence, before the sum. The published code uses
            0.05. `None`, or `inf` on a command line: no clip.
        opsd_token_clip (`float`, *optional*, defaults to `0.05`):
            Upper bound in nats of a token's divergence; above it the token keeps its direction and loses weight.
            `None`, or `inf` on a command line: no clip.
        opsd_policy_weight (`float`, *optional*, defaults to `0.0`):
            Weight of GRPO's own loss, added to the divergence. Needs `reward_funcs` and `num_generations` > 1.
        opsd_skip_tokens (`int`, *optional*, defaults to `0`):
            How many first tokens of a rollout have no loss. SDFT's released code skips 3.
        opsd_position_weights (`bool`, *optional*, defaults to `False`):
            Weigh late tokens more than early ones, from 0.25 to 1, as PW-OPSD does.

    As in the paper, `chat_template_kwargs` is `{"enable_thinking": False}` and `teacher_chat_template_kwargs` is
    `{"enable_thinking": True}` where not given. Templates that know no thinking ignore them.
    """

    num_generations: int = field(default=1, metadata={"help": "Rollouts a prompt. OPSD compares none: one will do."})
    teacher_model_kind: str = field(
        default="base",
        metadata={"help": "Whose weights score: 'base' (the start), 'live' or 'ema'.", "choices": list(TEACHER_KINDS)},
    )
    opsd_beta: float = field(
        default=0.0, metadata={"help": "0: KL(teacher||student), the paper's; 1: KL(student||teacher); between: JSD."}
    )
    opsd_entry_clip: float | None = field(
        default=None, metadata={"help": "Upper bound in nats of each vocabulary entry. Published: 0.05. None: no clip."}
    )
    opsd_token_clip: float | None = field(
        default=0.05, metadata={"help": "Upper bound in nats of a token's divergence, direction kept. None: no clip."}
    )
    opsd_policy_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of GRPO's loss beside the divergence. Needs rewards and num_generations>1."},
    )
    opsd_skip_tokens: int = field(default=0, metadata={"help": "First tokens of a rollout without loss. SDFT: 3."})
    opsd_position_weights: bool = field(
        default=False, metadata={"help": "Weigh late tokens more than early ones, as PW-OPSD does."}
    )

    def __post_init__(self) -> None:
        allow_one_rollout(self, super().__post_init__)

    def set_defaults(self) -> None:
        super().set_defaults()
        self.opsd_entry_clip = None if self.opsd_entry_clip == math.inf else self.opsd_entry_clip
        self.opsd_token_clip = None if self.opsd_token_clip == math.inf else self.opsd_token_clip
        if self.chat_template_kwargs is None:
            self.chat_template_kwargs = {"enable_thinking": False}
        if self.teacher_chat_template_kwargs is None and self.context_placement == "user":
            self.teacher_chat_template_kwargs = {"enable_thinking": True}

    def check(self) -> None:
        super().check()
        in_range("opsd_beta", self.opsd_beta, 0.0, 1.0)
        for name in ("opsd_entry_clip", "opsd_token_clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be positive, or None for no clip.")
        if not self.opsd_policy_weight >= 0:
            raise ValueError(f"opsd_policy_weight={self.opsd_policy_weight} must not be negative.")
        if self.opsd_skip_tokens < 0:
            raise ValueError(f"opsd_skip_tokens={self.opsd_skip_tokens} must not be negative.")
        if self.max_completion_length is not None and self.opsd_skip_tokens >= self.max_completion_length:
            raise ValueError(
                f"opsd_skip_tokens={self.opsd_skip_tokens} leaves nothing of max_completion_length="
                f"{self.max_completion_length} tokens: no token would have a loss. Skip fewer."
            )
        if self.opsd_policy_weight == 0:
            check_no_policy_loss(self, way_out="opsd_policy_weight > 0, which adds GRPO's loss")
        if self.opsd_policy_weight > 0 and self.num_generations == 1:
            raise ValueError("opsd_policy_weight > 0 adds GRPO's loss, comparing rollouts: set num_generations > 1.")


@final
class OPSDTrainer(DivergenceTrainer):
    """On-policy self-distillation toward a teacher that knows the solution.

    The arguments are those of [`~trl.GRPOTrainer`], plus `context_builder`. `reward_funcs` may be left out; given, they
    are logged, and used with `opsd_policy_weight > 0`. The dataset has a `privileged_context` (or `solution`) column.

    Differs: the token mean is over the global batch, as in TRL's `dapo` loss, where the released code takes it per
    micro-batch; the default clip is per token, because the published one per vocabulary entry removes the entries that
    carry the signal when the teacher knows much more than the student.

    Example:

    ```python
    dataset = load_dataset("siyanzhao/Openthoughts_math_30k_opsd", split="train")  # problem, solution
    trainer = OPSDTrainer(
        model="Qwen/Qwen3-1.7B",
        args=OPSDConfig(privileged_context_column="solution", learning_rate=5e-6, max_completion_length=1024),
        train_dataset=dataset.map(lambda row: {"prompt": [{"role": "user", "content": row["problem"]}]}),
        peft_config=LoraConfig(r=64, lora_alpha=128, target_modules="all-linear"),
    )
    trainer.train()
    ```
    """

    config_class = OPSDConfig
    args: OPSDConfig
    equation = r"L = \mathrm{mean}_t \min(1, c / D_t)\,D_t, \quad D_t = \sum_v \min(\ell_{t,v}, \tau)"
    _tag_names = ["trl", "trl-selfdistill", "opsd"]
    _name = "OPSD"
    _paper = {
        "title": "Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models",
        "id": "2601.18734",
        "citation": textwrap.dedent("""\
            @article{zhao2026selfdistilled,
                title  = {{Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models}},
                author = {Siyan Zhao and Zhihui Xie and Mengchen Liu and Jing Huang and Guan Pang and Feiyu Chen and
                          Aditya Grover},
                year   = 2026,
                eprint = {arXiv:2601.18734},
            }"""),
    }
    templates = {
        "user": f"{{prompt}}\n\nHere is a reference solution to this problem:\n\n{{context}}\n\n{_INSTRUCTION}",
        "system": f"Here is a reference solution to the problem that follows:\n\n{{context}}\n\n{_INSTRUCTION}",
    }

    @property
    def learns_from_rewards(self) -> bool:
        return self.args.opsd_policy_weight > 0

    @property
    def untaught(self) -> str:
        return "GRPO's loss alone" if self.learns_from_rewards else super().untaught

    @staticmethod
    def rewards_for(reward_funcs: Any, args: OPSDConfig) -> Any:
        found = rewards_or_none(reward_funcs, args)
        if found is no_reward and args.opsd_policy_weight > 0:
            raise ValueError("opsd_policy_weight > 0 adds GRPO's loss, which needs reward_funcs.")
        return found

    def divergence_settings(self) -> dict[str, Any]:
        args = self.args
        return {"beta": args.opsd_beta, "entry_clip": args.opsd_entry_clip, "token_clip": args.opsd_token_clip}

    def place_weights(self, mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        weights = skip_weights(mask, tokens=self.args.opsd_skip_tokens)
        return weights * position_weights(mask) if self.args.opsd_position_weights else weights

    def divergence_metrics(self, output: DivergenceOutput) -> dict[str, Tensor]:
        metrics = {"opsd/divergence": output.divergence}
        if self.args.opsd_entry_clip is not None:
            metrics["opsd/clipped_entry_mass"] = output.clipped_fraction
        if self.args.opsd_token_clip is not None:
            metrics["opsd/clipped_tokens"] = (output.divergence > self.args.opsd_token_clip).float()
        return metrics

    def batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss = super().batch_loss(model, inputs)
        if self.args.opsd_policy_weight > 0:
            loss = loss + self.args.opsd_policy_weight * self.policy_loss(model, inputs)
        return loss
