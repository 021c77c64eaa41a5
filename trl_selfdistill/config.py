"""The configuration fields that all self-distillation trainers share."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from trl import GRPOConfig

from trl_selfdistill.context.builders import BUILTIN
from trl_selfdistill.settings import (
    SAMPLER_ACTIONS,
    TEACHER_KINDS,
    check_types,
    check_values,
    warn_of_saves_inside_a_batch,
)

_GRPO_FIELDS = {f.name for f in fields(GRPOConfig)}


@dataclass
class SelfDistillConfig(GRPOConfig):
    r"""
    Configuration shared by [`RLRTTrainer`], [`AntiSDTrainer`] and [`OPSDTrainer`]: everything of [`~trl.GRPOConfig`],
    and what follows.

    > Parameters that control the privileged context

    Parameters:
        context (`str`, *optional*, defaults to `"gold"`):
            What the teacher sees: `"gold"` (the dataset's solution), `"peer"` (a correct rollout of the same group,
            never the rollout itself, drawn once per group), `"own_peer"` (drawn anew for each rollout),
            `"peer_else_gold"`, `"majority"` (a rollout with the group's most frequent answer), the controls
            `"other_gold"` (the solution of another problem) and `"none"` (no privileged text), or the dotted path of a
            function `Rollout -> Context | str | None`.
        privileged_context_column (`str`, *optional*, defaults to `"privileged_context"`):
            Dataset column with the gold solution. `"solution"` is taken where the default column is absent.
        feedback_column (`str`, *optional*):
            Dataset column with feedback for templates with `{feedback}`. `None`: what the reward or the `rollout_func`
            said of the completion, else whether it was correct.
        teacher_template (`str`, *optional*):
            Text around the context, with one `{context}` and at most one `{prompt}` and one `{feedback}` (how the
            rollout fared). `None` is the algorithm's own.
        context_placement (`str`, *optional*, defaults to `"user"`):
            `"user"`: into the last user turn. `"system"`: a block before the unchanged prompt tokens, for multi-turn
            prompts, tools and images.
        max_context_tokens (`int`, *optional*):
            Longest context in tokens; longer ones are cut in their middle, and counted. `None`: no limit.
        context_thinking (`str`, *optional*, defaults to `"keep"`):
            `"remove"` leaves the `<think>` part of another rollout out of what the teacher sees.
        teacher_chat_template_kwargs (`dict`, *optional*):
            Chat-template arguments of the teacher. `None`: the student's `chat_template_kwargs`.

    > Parameters that control the teacher

        teacher_model_kind (`str`, *optional*, defaults to `"live"`):
            `"live"` (the current policy), `"base"` (the policy as it was at the start: adapter off under PEFT, a frozen
            copy otherwise) or `"ema"` (an exponential moving average of the policy, which starts at the policy).
        teacher_update_rate (`float`, *optional*, defaults to `0.05`):
            Share of the policy in each update of the `"ema"` teacher, in [0, 1]. 1 copies the policy.
        teacher_sync_steps (`int`, *optional*, defaults to `1`):
            Optimiser steps between updates of the `"ema"` teacher.
        teacher_ema_dtype (`str`, *optional*, defaults to `"float32"`):
            Precision in which the `"ema"` teacher's weights are kept, `"float32"` or `"bfloat16"`.

    > Parameters that control how log-probabilities are made

        policy_logps (`str`, *optional*, defaults to `"fused"`):
            Where GRPO's own log-probabilities and entropies come from: `"fused"` (our op, float32 logits, positions
            counted from the attention mask) or `"trl"` (TRL's head, rounded to the model's precision).
        shared_prefix (`bool`, *optional*, defaults to `True`):
            Encode a teacher's prompt once for all rows that have it, where the model's cache allows it.

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
        log_token_signals (`bool`, *optional*, defaults to `False`):
            Write what the teacher said about every token of the last batch to `output_dir/token_signals/*.parquet` at
            each logging step.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "teacher_chat_template_kwargs"]

    context: str = field(
        default="gold",
        metadata={"help": f"What the teacher sees: one of {sorted(BUILTIN)}, or the dotted path of a function."},
    )
    privileged_context_column: str = field(
        default="privileged_context",
        metadata={"help": "Dataset column with the gold solution; 'solution' where the default column is absent."},
    )
    feedback_column: str | None = field(
        default=None, metadata={"help": "Dataset column with feedback. None: what was said of the completion itself."}
    )
    teacher_template: str | None = field(
        default=None,
        metadata={"help": "Text around the context: one {context}, at most one {prompt}. None: the algorithm's own."},
    )
    context_placement: str = field(
        default="user",
        metadata={
            "help": "'user': into the last user turn; 'system': a block before the unchanged prompt tokens.",
            "choices": ["user", "system"],
        },
    )
    max_context_tokens: int | None = field(
        default=None,
        metadata={"help": "Longest context in tokens; longer ones are cut in their middle. None: no limit."},
    )
    context_thinking: str = field(
        default="keep",
        metadata={"help": "The thinking part of other rollouts that the teacher sees.", "choices": ["keep", "remove"]},
    )
    teacher_chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Chat-template arguments of the teacher. None: the student's chat_template_kwargs."},
    )
    teacher_model_kind: str = field(
        default="live",
        metadata={
            "help": "Whose weights score: 'live' (the current policy), 'base' (the policy at the start) or 'ema'.",
            "choices": list(TEACHER_KINDS),
        },
    )
    teacher_update_rate: float = field(
        default=0.05,
        metadata={"help": "Share of the policy in each update of the 'ema' teacher, in [0, 1]. 1 copies the policy."},
    )
    teacher_sync_steps: int = field(
        default=1, metadata={"help": "Optimiser steps between updates of the 'ema' teacher."}
    )
    teacher_ema_dtype: str = field(
        default="float32",
        metadata={"help": "Precision of the 'ema' teacher's weights.", "choices": ["float32", "bfloat16"]},
    )
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
    log_token_signals: bool = field(
        default=False,
        metadata={"help": "Write the teacher's per-token signal to output_dir/token_signals at each logging step."},
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
