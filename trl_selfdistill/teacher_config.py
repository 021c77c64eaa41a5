"""The configuration fields that say what the teacher is shown, and whose weights it has."""

from dataclasses import dataclass, field
from inspect import get_annotations
from typing import Any

from trl import GRPOConfig

from trl_selfdistill.context.builders import NAMES
from trl_selfdistill.settings import TEACHER_KINDS, changed_settings


@dataclass
class TeacherConfig(GRPOConfig):
    r"""
    The teacher's part of [`SelfDistillConfig`].

    > Parameters that control the privileged context

    Parameters:
        context (`str`, *optional*, defaults to `"gold"`):
            What the teacher sees: `"gold"` (the dataset's solution), `"peer"` (a correct rollout of the same group,
            never the rollout itself, drawn once per group), `"own_peer"` (drawn anew for each rollout),
            `"peer_else_gold"`, `"majority"` (a rollout with the group's most frequent answer), `"feedback"` (what was
            said of this very rollout), `"peer_else_feedback"`, `"memory"` (lessons of earlier batches, see
            [`LessonMemory`]), the controls `"other_gold"` (the solution of another problem) and `"none"` (no privileged
            text), or the dotted path of a function `Rollout -> Context | str | None`.
        privileged_context_column (`str`, *optional*, defaults to `"privileged_context"`):
            Dataset column with the gold solution. `"solution"` is taken where the default column is absent.
        feedback_column (`str`, *optional*):
            Dataset column with feedback for templates with `{feedback}`. `None`: what the reward, the `rollout_func`
            or the environment said of the completion, else whether it was correct.
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
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "teacher_chat_template_kwargs"]

    context: str = field(
        default="gold",
        metadata={"help": f"What the teacher sees: one of {NAMES}, or the dotted path of a function."},
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


ROLLOUT_FIELDS = ("privileged_context_column", "feedback_column")
"""What a `Rollout` knows, which functions such as a `row_weight` may read without any teacher."""
ONLY_TEACHERS = tuple(name for name in get_annotations(TeacherConfig) if name not in ROLLOUT_FIELDS)
"""Fields that act on a teacher and on nothing else."""


def check_no_teacher(args: Any) -> None:
    """Refuse each field that only a teacher reads, for an algorithm that asks none.

    Raises `ValueError` that names all of them that are not at the default of the configuration `args`.
    """
    given, kept = changed_settings(args, ONLY_TEACHERS)
    if given:
        raise ValueError(
            f"{given}: this acts on a teacher. {type(args).__name__} is of an algorithm that asks none, and it would "
            f"do nothing. Set {kept} (the default), or leave it out."
        )
