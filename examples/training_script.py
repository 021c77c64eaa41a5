"""The part that rlrt.py, antisd.py and opsd.py share: a TRL training script with `TrlParser`."""

import importlib
from dataclasses import dataclass, field
from typing import Any

from datasets import load_dataset
from transformers import PrinterCallback, ProgressCallback
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config, rewards

from trl_selfdistill import SelfDistillConfig
from trl_selfdistill.record.progress import ProgressLines


@dataclass
class RewardArguments(ScriptArguments):
    """TRL's script arguments and the rewards."""

    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={"help": "Reward functions: names from `trl.rewards`, or dotted import paths."},
    )


def load_reward(name: str) -> Any:
    """A reward function by its name in `trl.rewards` or by its dotted path."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module) if module else rewards, attribute)


def run(trainer_class: Any, config_class: type[SelfDistillConfig]) -> None:
    """Parse the command line (and `--config recipe.yaml`), train, save, and push where asked to."""
    types: Any = (RewardArguments, config_class, ModelConfig)
    parser = TrlParser(types)
    script_args, training_args, model_args = parser.parse_args_and_config()
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    dataset: Any = load_dataset(
        script_args.dataset_name, name=script_args.dataset_config, streaming=script_args.dataset_streaming
    )
    trainer = trainer_class(
        model=model_args.model_name_or_path,
        reward_funcs=[load_reward(name) for name in script_args.reward_funcs] or None,
        args=training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        callbacks=[ProgressLines()],
    )
    for printer in (PrinterCallback, ProgressCallback):  # ProgressLines takes their place
        trainer.remove_callback(printer)
    resume: Any = training_args.resume_from_checkpoint  # a folder; "true" for the newest in output_dir
    trainer.train(resume_from_checkpoint=True if str(resume).lower() == "true" else resume)
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
