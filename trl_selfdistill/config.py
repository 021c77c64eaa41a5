"""The configuration fields that all self-distillation trainers share."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from trl import GRPOConfig

from trl_selfdistill.record.health import ACTIONS
from trl_selfdistill.settings import (
    SAMPLER_ACTIONS,
    check_types,
    check_values,
    recorded_completions,
    warn_of_saves_inside_a_batch,
)
from trl_selfdistill.teacher_config import TeacherConfig

_GRPO_FIELDS = {f.name for f in fields(GRPOConfig)}


@dataclass
class SelfDistillConfig(TeacherConfig):
    r"""
    Configuration shared by all trainers: everything of [`~trl.GRPOConfig`] and of [`TeacherConfig`], and what follows.

    > Parameters that control how log-probabilities are made

    Parameters:
        policy_logps (`str`, *optional*, defaults to `"fused"`):
            Where GRPO's own log-probabilities and entropies come from: `"fused"` (our op, float32 logits, positions
            counted from the attention mask) or `"trl"` (TRL's head, rounded to the model's precision).
        shared_prefix (`bool`, *optional*, defaults to `True`):
            Encode a teacher's prompt once for all rows that have it, where the model's cache allows it.
        skip_unused_scores (`bool`, *optional*, defaults to `False`):
            Do not ask the teacher about rollouts whose advantages it cannot change: with RLRT wrong ones, with RLRT and
            RLSD those of groups without a difference in reward. The policy learns the same for less time. The log and
            the report show the other rollouts alone, and a stale sampler is not seen by the surprise of its rollouts.
        sampler_mismatch (`str`, *optional*, defaults to `"warn"`):
            What to do when the rollouts do not come from the policy that is trained, but from a sampler with old or
            other weights: `"warn"`, `"stop"` or `"ignore"`.
        sampler_mismatch_threshold (`float`, *optional*, defaults to `0.1`):
            Mean distance in nats of a token's log-probability at which that is so.

    > Parameters that control correctness and logging

        correctness_reward (`str`, `list[str]` or a function, *optional*):
            Name of the reward function that tells whether a rollout is correct. `None`: the first one. Several names,
            for several tasks: correct when each one that is not `None` reaches the threshold. A function, or its dotted
            path, gets all rewards by name and answers True, False or `None` (not assessed).
        correctness_threshold (`float`, *optional*, defaults to `1.0`):
            A rollout is correct when that reward is at least this much. Truncated rollouts and `None`/NaN rewards are
            never correct.
        row_weight (`str`, *optional*, defaults to `"none"`):
            Weight of each rollout, whatever the algorithm: `"paced"` is 4 p (1 - p) with the group's share p of correct
            rollouts; or the dotted path of a function `Rollout -> float`.
        health_action (`str`, *optional*, defaults to `"warn"`):
            What to do when a health check fails, such as "no row has a teacher any more": `"warn"` (once, until it has
            gone and come back), `"stop"` or `"ignore"`. docs/health.md has all checks.
        health_thresholds (`dict`, *optional*):
            Thresholds of health checks by name, over the defaults: `{"no_teacher": 20}`.
        log_token_signals (`int`, *optional*):
            Completions of which what the teacher said about every token is written to
            `output_dir/token_signals/*.parquet` at each logging step, over all processes; -1 or `True` for all of the
            last batch, 0 for none. `None`: 8, or 0 with `push_to_hub`, which would publish them.
    """

    _VALID_DICT_FIELDS = [*TeacherConfig._VALID_DICT_FIELDS, "health_thresholds"]

    policy_logps: str = field(
        default="fused",
        metadata={
            "help": "GRPO's log-probabilities: 'fused' (our op, float32 logits) or 'trl' (TRL's head).",
            "choices": ["fused", "trl"],
        },
    )
    shared_prefix: bool = field(
        default=True, metadata={"help": "Encode a teacher's prompt once for all rows that have it."}
    )
    skip_unused_scores: bool = field(
        default=False, metadata={"help": "Do not score rollouts whose advantages the teacher cannot change."}
    )
    sampler_mismatch: str = field(
        default="warn",
        metadata={"help": "When rollouts are not the policy's own.", "choices": list(SAMPLER_ACTIONS)},
    )
    sampler_mismatch_threshold: float = field(
        default=0.1, metadata={"help": "Mean distance of log-probabilities (nats) at which rollouts are not its own."}
    )
    correctness_reward: Any = field(
        default=None,
        metadata={"help": "Name of the reward that tells correctness, or several with commas. None: the first one."},
    )
    correctness_threshold: float = field(
        default=1.0,
        metadata={"help": "A rollout is correct when the correctness reward is at least this much."},
    )
    row_weight: str = field(
        default="none",
        metadata={"help": "Weight of each rollout: 'none', 'paced' (4p(1-p)), or the dotted path of a function."},
    )
    health_action: str = field(
        default="warn", metadata={"help": "When a health check fails.", "choices": list(ACTIONS)}
    )
    health_thresholds: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Thresholds of health checks by name, over the defaults. docs/health.md has them all."},
    )
    log_token_signals: int | None = field(
        default=None,
        metadata={"help": "Completions to write token by token at each logging step. -1: all. None: 8, 0 if pushed."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.set_defaults()
        self.check()

    def check(self) -> None:
        """Raise `ValueError` for a field of this package that cannot work, before anything is loaded."""
        check_types(self, [f for f in fields(self) if f.name not in _GRPO_FIELDS])
        if math.isnan(self.correctness_threshold):
            raise ValueError("correctness_threshold=nan: no reward is ever that much. Set a number.")
        warn_of_saves_inside_a_batch(self)
        check_values(self)

    def set_defaults(self) -> None:
        """Fill in fields whose default depends on other fields."""
        self.log_token_signals = recorded_completions(self.log_token_signals, published=self.push_to_hub)
