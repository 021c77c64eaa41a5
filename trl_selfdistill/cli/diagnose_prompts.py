"""The rollouts of a diagnosis, and what each context makes of their prompts: by the package's own collator."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from trl_selfdistill.cli.diagnose_contexts import CONTEXTS
from trl_selfdistill.cli.evaluation import Drawn, Row, Scene
from trl_selfdistill.context.builders import as_context, verdict
from trl_selfdistill.context.collator import PrivilegedContextCollator
from trl_selfdistill.context.rollout import Rollout
from trl_selfdistill.trainer.build import make_collator
from trl_selfdistill.trainer.rollouts import Batch, Setting, make_rollouts
from trl_selfdistill.trainer.rowchecks import DEFAULT_COLUMN, GoldColumns


def golds_of(rows: Sequence[Row]) -> list[str | None]:
    """The gold solutions, found as in a training."""
    gold = GoldColumns(DEFAULT_COLUMN, needed_by=None)
    gold.add("the dataset", list(rows[0]), training=True)
    return [gold.of(row) for row in rows]


def rollouts_of(scene: Scene, rows: Sequence[Row], drawn: Drawn) -> list[Rollout]:
    """The completions as the trainer's `Rollout`s. `rows` holds each problem `n` times in a row."""
    judge = scene.judge
    nothing = [None] * len(rows)
    prompts = [row["prompt"] for row in rows]
    batch = Batch(rows, prompts, drawn.completions, drawn.ids, golds_of(rows), nothing, drawn.rewards)
    setting = Setting(
        correctness=judge.correctness,
        assesses=True,
        feedback_column=None,
        reward_names=judge.names,
        reward_weights=torch.ones(len(judge.names)),
        end_ids=scene.end_ids,
        max_length=scene.sampling.max_tokens,
        group_size=scene.sampling.n,
        seed=str(scene.sampling.seed),
        first=0,
        step=0,
    )
    return make_rollouts(batch, setting)


def collator_of(trainer_class: Any, config: Any, tokenizer: Any, prompts: list[Any], model: Any) -> Any:
    """The collator that a trainer of this configuration would use."""
    about: Any = {"is_vlm": False, "tools": None, "model_config": model.config}
    return make_collator(config, tokenizer, trainer_class.templates, None, prompts[:1], **about)


def teacher_prompts(
    collator: PrivilegedContextCollator,
    rollouts: Sequence[Rollout],
    own_ids: Sequence[list[int]],
    lengths: Sequence[int],
    names: Sequence[str],
    student_chat: Mapping[str, Any],
) -> dict[str, list[list[int] | None]]:
    """By context the teacher's prompt of each rollout, `None` where there is no context.

    Contexts that no rollout has are left out. `thinking` has `enable_thinking`, `none` the student's own arguments.
    """
    teacher_chat = dict(collator.teacher_chat_template_kwargs or {})
    chats = {"none": dict(student_chat), "thinking": {**teacher_chat, "enable_thinking": True}}
    found = {}
    for name in names:
        _, builder = CONTEXTS[name]
        own = replace(collator, teacher_chat_template_kwargs=chats.get(name, teacher_chat))
        encoded = own(
            [rollout.prompt for rollout in rollouts],
            [as_context(builder(rollout), maker=f"the context {name!r}") for rollout in rollouts],
            feedback=[verdict(rollout) for rollout in rollouts],
            prompt_ids=own_ids,
            completion_tokens=lengths,
        )
        rows = zip(encoded["teacher_prompt_ids"], encoded["teacher_prompt_mask"].bool(), strict=True)
        prompts = [ids[mask].tolist() for ids, mask in rows]
        taught = encoded["has_context"].tolist()
        if any(taught):
            found[name] = [ids if has else None for ids, has in zip(prompts, taught, strict=True)]
    return found
