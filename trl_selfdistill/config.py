"""The configuration fields that all self-distillation trainers share."""

import math
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from trl_selfdistill.context.builders import resolve_context
from trl_selfdistill.context.templates import check_template
from trl_selfdistill.settings import in_range, warn_of_saves_inside_a_batch

TEACHER_KINDS = ("live", "base", "ema")


@dataclass
class SelfDistillConfig(GRPOConfig):
    r"""
    Configuration shared by [`RLRTTrainer`], [`AntiSDTrainer`] and [`OPSDTrainer`]: everything of [`~trl.GRPOConfig`],
    and what follows.

    > Parameters that control the privileged context

    Parameters:
        context (`str`, *optional*, defaults to `"gold"`):
            What the teacher sees: `"gold"` (the dataset's solution), `"peer"` (a correct rollout of the same group,
            never the rollout itself), `"peer_else_gold"`, or the dotted path of a function `Rollout -> str | None`.
        privileged_context_column (`str`, *optional*, defaults to `"privileged_context"`):
            Dataset column with the gold solution. `"solution"` is taken where this column is absent.
        teacher_template (`str`, *optional*):
            Text around the context, with one `{context}` and at most one `{prompt}` and one `{feedback}` (how the
            rollout fared). `None` is the algorithm's own.
        context_placement (`str`, *optional*, defaults to `"user"`):
            `"user"`: into the last user turn. `"system"`: a block before the unchanged prompt tokens, for multi-turn
            prompts, tools and images.
        max_context_tokens (`int`, *optional*):
            Longest context in tokens; longer ones are cut in their middle, and counted. `None`: no limit.
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

    > Parameters that control correctness and logging

        correctness_reward (`str`, *optional*):
            Name of the reward function that tells whether a rollout is correct. `None`: the first one.
        correctness_threshold (`float`, *optional*, defaults to `1.0`):
            A rollout is correct when that reward is at least this much. Truncated rollouts and `None`/NaN rewards are
            never correct.
        log_token_signals (`bool`, *optional*, defaults to `False`):
            Write what the teacher said about every token of the last batch to `output_dir/token_signals/*.parquet` at
            each logging step.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "teacher_chat_template_kwargs"]

    context: str = field(
        default="gold",
        metadata={"help": "What the teacher sees: 'gold', 'peer', 'peer_else_gold' or the dotted path of a function."},
    )
    privileged_context_column: str = field(
        default="privileged_context",
        metadata={"help": "Dataset column with the gold solution; 'solution' is taken where it is absent."},
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
    correctness_reward: str | None = field(
        default=None,
        metadata={"help": "Name of the reward function that tells correctness. None: the first one."},
    )
    correctness_threshold: float = field(
        default=1.0,
        metadata={"help": "A rollout is correct when the correctness reward is at least this much."},
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
        if not isinstance(self.context, str):
            raise ValueError(
                f"context={self.context!r} must be a name or a dotted path. Pass functions as context_builder."
            )
        resolve_context(self.context)
        if math.isnan(self.correctness_threshold):
            raise ValueError("correctness_threshold=nan: no reward is ever that much. Set a number.")
        if not isinstance(self.teacher_chat_template_kwargs, dict | None):
            raise ValueError("teacher_chat_template_kwargs must be a dictionary, or None.")
        warn_of_saves_inside_a_batch(self)
        if self.context == "peer" and self.num_generations == 1:
            raise ValueError(
                "context='peer' shows the teacher another rollout of the prompt, but num_generations=1 makes none. "
                "Set num_generations to at least 2, or context='gold'."
            )
        if self.context_placement not in ("user", "system"):
            raise ValueError(f"context_placement={self.context_placement!r} must be 'user' or 'system'.")
        if self.teacher_template is not None:
            check_template(self.teacher_template, self.context_placement)
        if self.max_context_tokens is not None and self.max_context_tokens < 1:
            raise ValueError(f"max_context_tokens={self.max_context_tokens} must be at least 1, or None for no limit.")
        if self.teacher_model_kind not in TEACHER_KINDS:
            raise ValueError(f"teacher_model_kind={self.teacher_model_kind!r} must be one of {list(TEACHER_KINDS)}.")
        in_range("teacher_update_rate", self.teacher_update_rate, 0.0, 1.0)
        if self.teacher_sync_steps < 1:
            raise ValueError(f"teacher_sync_steps={self.teacher_sync_steps} must be at least 1.")
        if self.teacher_ema_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"teacher_ema_dtype={self.teacher_ema_dtype!r} must be 'float32' or 'bfloat16'.")

    def set_defaults(self) -> None:
        """Fill in fields whose default depends on other fields."""

    @classmethod
    def for_trainer(cls, args: GRPOConfig | None, model: Any, trainer_name: str) -> "SelfDistillConfig":
        """The configuration of a trainer that was given `args`: its own, a plain `GRPOConfig`, or nothing.

        A script that only changes the trainer's class keeps its `GRPOConfig`. It has been resolved already (batch
        sizes, devices), so it is copied as it is, with defaults in the fields of this package.

        Raises `ValueError` for the configuration of another algorithm.
        """
        if args is None:
            model_name = model if isinstance(model, str) else model.config.name_or_path
            return cls(f"{model_name.rstrip('/').split('/')[-1]}-{trainer_name}")
        if isinstance(args, cls):
            return args
        if isinstance(args, SelfDistillConfig):
            raise ValueError(f"{trainer_name} needs args of type {cls.__name__}, not {type(args).__name__}.")
        new = object.__new__(cls)
        # The fields of this package all have plain defaults, which dataclasses keep as class attributes.
        new.__dict__.update(args.__dict__)
        new.set_defaults()
        new.check()
        return new
