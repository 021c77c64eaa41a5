"""The arguments of all trainers: as `help(RLRTTrainer)` shows them, and the configuration among them."""

from dataclasses import fields
from typing import Any

from transformers import BitsAndBytesConfig, PreTrainedConfig
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


def check_skipped(args: SelfDistillConfig, trainer_name: str, *, can_skip: bool) -> None:
    """Raise `ValueError` for `skip_unused_scores` where the algorithm uses all scores."""
    if args.skip_unused_scores and not can_skip:
        raise ValueError(
            f"skip_unused_scores=True does nothing for {trainer_name}, which uses what the teacher says of every "
            "rollout. Leave it out."
        )


def check_builder(context_builder: Any, *, asks_teacher: bool, trainer_name: str) -> None:
    """Raise `ValueError` for a `context_builder` that nobody would call."""
    if context_builder is not None and not asks_teacher:
        raise ValueError(f"context_builder: {trainer_name} asks no teacher, so nothing calls it. Leave it out.")


def check_sampler_precision(
    args: SelfDistillConfig, model: Any, quantization_config: BitsAndBytesConfig | None
) -> None:
    """Raise `ValueError` for vLLM beside a base model in 4 or 8 bits, before either is loaded.

    TRL gives vLLM the base with the adapter merged into it. Merging rounds the sum to the few bits of the base, so vLLM
    would sample from another policy than the one that is trained; under FSDP2 there is nothing to merge into.
    """
    if not args.use_vllm:
        return
    init_kwargs: Any = args.model_init_kwargs or {}
    bits = bits_of(quantization_config) or base_bits(init_kwargs, model)
    if bits is None:
        return
    raise ValueError(
        f"use_vllm=True with a base model in {bits} bits: for vLLM, TRL merges the adapter into the base. Merged into "
        f"{bits} bits it is rounded, and vLLM samples from another policy (github.com/huggingface/trl/issues/3466); "
        "bits that FSDP2 has sharded cannot be merged at all (github.com/huggingface/trl/issues/5975). Set "
        "use_vllm=False, or train the adapter on a base in bfloat16: leave out quantization_config (load_in_4bit, "
        "load_in_8bit)."
    )


def base_bits(init_kwargs: dict[str, Any], model: Any) -> int | None:
    """The bits of the weights of `model`, or of what is stored under that name; `None` where bitsandbytes made none."""
    if not isinstance(model, str):
        return bits_of(getattr(model.config, "quantization_config", None))
    asked = bits_of(init_kwargs.get("quantization_config"))
    if asked is not None:
        return asked
    stored, _ = PreTrainedConfig.get_config_dict(model, revision=init_kwargs.get("revision"))
    return bits_of(stored.get("quantization_config"))


def bits_of(quantization: Any) -> int | None:
    """4 or 8 for bitsandbytes, as an object or as the dictionary of a `config.json`; else `None`."""
    if quantization is None:
        return None
    values = quantization if isinstance(quantization, dict) else quantization.to_dict()
    return next((bits for bits in (4, 8) if values.get(f"load_in_{bits}bit")), None)
