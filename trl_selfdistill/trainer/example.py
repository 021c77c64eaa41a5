"""The teacher's prompts for the first row, before there is any rollout."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl_selfdistill.context.builders import as_context
from trl_selfdistill.context.memory import ContextMemory
from trl_selfdistill.context.rollout import Rollout
from trl_selfdistill.record.first_prompt import teacher_prompt
from trl_selfdistill.trainer.base import SelfDistillTrainer

PLACEHOLDER = "(a rollout of the policy will stand here)"
WRONG = "(a wrong rollout of the policy will stand here)"
SAID = "(what is said of the rollout will stand here)"


def example_prompts(trainer: SelfDistillTrainer) -> dict[str, str]:
    """What the teacher of `trainer` reads for the first row of the training set, by view, special tokens included.

    The rollouts that it may be shown are `PLACEHOLDER`s that count as correct. A view that gets no context is left out.
    Images stand for themselves in a prompt's tokens and are not shown.
    """
    row = next(iter(trainer.train_dataset))
    prompt = row["prompt"]
    own_ids = [trainer._tokenizer.eos_token_id] if trainer._is_vlm else trainer._tokenize_prompts([prompt])[0][0]
    rollout = example_rollout(trainer, row)
    with remembered(trainer.memory, rollout):
        shown = trainer.contexts(rollout)
    texts = {}
    for view in trainer.views:
        context = as_context(shown.get(view), maker="the context builder")
        if context is not None:
            feedback = [trainer.feedback(rollout)]
            encoded = trainer.collator([prompt], [context], feedback=feedback, prompt_ids=[own_ids])
            texts[view] = teacher_prompt(trainer._tokenizer, encoded, 0)
    return texts


@contextmanager
def remembered(memory: ContextMemory | None, rollout: Rollout) -> Iterator[None]:
    """Inside, the memory, if there is one, has learnt from `rollout`. Afterwards it has not."""
    if memory is None:
        yield
        return
    before = memory.state_values()
    memory.learn([memory.lesson(rollout)])
    try:
        yield
    finally:
        memory.load_state_values(before)


def example_rollout(trainer: SelfDistillTrainer, row: Any, text: str = PLACEHOLDER) -> Rollout:
    """A correct rollout of `row`. The correct ones of its group all have the same `text`; there is a wrong one, too."""
    others = (text,) * max(1, trainer.num_generations - 1)
    gold = trainer._data.gold.of(row)
    return Rollout(
        row=row,
        prompt=row["prompt"],
        completion=text,
        correct=True,
        gold=gold,
        peers=others,
        wrong_peers=(WRONG,),
        finished_peers=others,
        other_gold=gold,
        pass_rate=1.0,
        group_size=trainer.num_generations,
        reward=1.0,
        feedback=SAID if trainer.args.context == "feedback" and trainer.own_builder is None else None,
    )
