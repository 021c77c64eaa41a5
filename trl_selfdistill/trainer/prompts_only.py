"""Both sides' prompts of a run without its model: the tokenizer and the model's configuration are enough."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.context.builders import as_context
from trl_selfdistill.context.encoding import cut_middle, encode, encode_literally
from trl_selfdistill.context.rollout import Context
from trl_selfdistill.trainer.base import SelfDistillTrainer
from trl_selfdistill.trainer.datachecks import check_data, first_prompts
from trl_selfdistill.trainer.example import PLACEHOLDER, example_rollout, remembered


@dataclass(frozen=True)
class Sides:
    """One row as both sides see it, under one view of the teacher. Token ids are unpadded."""

    view: str
    student: list[int]
    teacher: list[int]
    completion: list[int]
    """The same tokens follow both prompts."""
    context: Context | None
    shown: list[int]
    """Ids of the context as it stands in the teacher's prompt; empty where there is none."""
    context_tokens: int
    """Its length before it was cut."""
    stand_in: str
    """Whose text takes the place of the completion and of other rollouts."""


def prompts_only(
    trainer_class: type[SelfDistillTrainer],
    args: SelfDistillConfig,
    tokenizer: PreTrainedTokenizerBase,
    model_config: Any,
    dataset: Any,
) -> Any:
    """A trainer that can make prompts and nothing else: it has no model, and no tools.

    Raises `ValueError` for whatever a trainer refuses of the data and of the configuration's prompts.
    """
    trainer: Any = trainer_class.__new__(trainer_class)
    trainer._data = check_data(args, dataset, None, None, None, asks_teacher=bool(trainer_class.views))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    trainer.args, trainer.tools, trainer.chat_template = args, [], None
    trainer.processing_class = trainer._tokenizer = tokenizer
    trainer._is_vlm, trainer.environment_factories = False, None
    trainer.chat_template_kwargs = args.chat_template_kwargs or {}
    trainer.num_generations = args.num_generations
    trainer.build_prompts(args, first_prompts(dataset), None, model_config)
    trainer.set_up()
    return trainer


def sides_of(trainer: Any, row: Any, completion: str | None) -> list[Sides]:
    """`row` under every view. `completion`, else the gold solution, stands in for what the policy would write.

    A row for which the algorithm has no teacher has a `context` of `None`.
    """
    gold = trainer._data.gold.of(row)
    stand_in = "--completion" if completion is not None else "the gold solution" if gold else "a placeholder"
    text = completion if completion is not None else gold or PLACEHOLDER
    rollout = example_rollout(trainer, row, text)
    prompt = row["prompt"]
    student = own_prompt(trainer, row)
    written = [*encode_literally(trainer._tokenizer, text, name="completion"), trainer._tokenizer.eos_token_id]
    with remembered(trainer.memory, rollout):
        made = trainer.contexts(rollout)
    found = []
    for view in trainer.views:
        context = as_context(made.get(view), maker=trainer._context_source)
        feedback, length = trainer.feedback(rollout), len(written)

        def teacher_ids(shown: Context | None, feedback: Any = feedback, length: int = length) -> Any:
            columns = {"feedback": [feedback], "prompt_ids": [student], "completion_tokens": [length]}
            return trainer.collator([prompt], [shown], tools=[trainer.tools], **columns)

        encoded = teacher_ids(context)
        ids = encoded["teacher_prompt_ids"][0][encoded["teacher_prompt_mask"][0].bool()].tolist()
        shown = [] if context is None or context.text is None else shown_ids(trainer, context, ids, teacher_ids)
        tokens = int(encoded["context_tokens"][0])
        found.append(Sides(view, student, ids, written, context, shown, tokens, stand_in))
    return found


def own_prompt(trainer: Any, row: Any) -> list[int]:
    """The policy's prompt for `row`."""
    return list(trainer._tokenize_prompts([row["prompt"]])[0][0])


def shown_ids(trainer: Any, context: Context, ids: list[int], teacher_ids: Any) -> list[int]:
    """The ids of `context` after the cut. Everything else in the prompt has a fixed length."""
    whole = encode_literally(trainer._tokenizer, context.text, name="context")
    probe = encode(trainer._tokenizer, "a")
    frame = int(teacher_ids(Context("a"))["teacher_prompt_mask"].sum()) - len(probe)
    return cut_middle(trainer._tokenizer, whole, len(ids) - frame)
