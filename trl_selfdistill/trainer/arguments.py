"""The arguments of all trainers: as `help(RLRTTrainer)` shows them, and the configuration among them."""

from dataclasses import fields
from typing import Any

from trl import GRPOConfig

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.settings import default_of

ARGUMENTS = """
Those of [`~trl.GRPOTrainer`], and `context_builder`.

Args:
    model (`str`, `PreTrainedModel` or `PeftModel`): the policy: a name on the Hub, a folder, or a model.
    reward_funcs (function, `str`, `PreTrainedModel`, or a list of them): as in GRPO. The first one, or the one that
        `args.correctness_reward` names, tells which rollouts are correct. OPSD needs none.
    args (`SelfDistillConfig` or `GRPOConfig`): the configuration, such as `RLRTConfig` for `RLRTTrainer`. A plain
        `GRPOConfig` gets the algorithm's defaults, and so does `None`.
    train_dataset (`Dataset` or `IterableDataset`): rows with `prompt` and, for contexts that need it, the gold
        solution in `args.privileged_context_column`.
    eval_dataset (`Dataset`, `IterableDataset` or a dictionary of them): likewise, for evaluation.
    processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): the tokenizer or processor; loaded with the model
        where it is not given.
    reward_processing_classes (tokenizer or a list): tokenizers of reward models.
    callbacks (list of `TrainerCallback`): more callbacks.
    optimizers (tuple): an optimizer and a scheduler in place of the default ones.
    quantization_config (`BitsAndBytesConfig`): loads the policy in 4 or 8 bits, for QLoRA.
    peft_config (`PeftConfig`): trains an adapter.
    tools (list of functions): what the policy may call.
    rollout_func (function): makes the completions in place of the trainer. A field "feedback" of what it returns is
        what it has to say of each completion.
    environment_factory (function): makes the environments in which rollouts take place.
    context_builder (function `Rollout -> Context | str | None`): what the teacher is shown, in place of `args.context`.

Raises `ValueError` for what cannot work, naming the field and the way out.
"""


def configuration_of(
    config_class: type[SelfDistillConfig], args: GRPOConfig | None, model: Any, trainer_name: str
) -> SelfDistillConfig:
    """The configuration of a trainer that was given `args`: its own, a plain `GRPOConfig`, or nothing.

    A script that only changes the trainer's class keeps its `GRPOConfig`. It has been resolved already (batch sizes,
    devices), so it is copied as it is, with defaults in the fields of this package.

    Raises `ValueError` for the configuration of another algorithm.
    """
    if args is None:
        model_name = model if isinstance(model, str) else model.config.name_or_path
        return config_class(f"{model_name.rstrip('/').split('/')[-1]}-{trainer_name}")
    if type(args) is config_class:
        return args
    if isinstance(args, SelfDistillConfig):  # also a subclass, whose fields this trainer would not read
        raise ValueError(f"{trainer_name} needs args of type {config_class.__name__}, not {type(args).__name__}.")
    new = object.__new__(config_class)
    new.__dict__.update({f.name: default_of(f) for f in fields(config_class) if f.name not in args.__dict__})
    new.__dict__.update(args.__dict__)
    new.set_defaults()
    new.check()
    return new
