"""Train from a command line. This module is also what `accelerate launch` starts in each process."""

import os
import sys
from collections.abc import Callable
from typing import Any

from accelerate.utils import DistributedType
from transformers import AutoConfig, PrinterCallback, ProgressCallback, set_seed
from trl import get_peft_config, get_quantization_config

import trl_selfdistill
from trl_selfdistill.cli.arguments import Arguments, CommandLine, parse, read_command_line
from trl_selfdistill.cli.commands import ALGORITHMS
from trl_selfdistill.cli.data import load_data
from trl_selfdistill.cli.dry_run import show
from trl_selfdistill.cli.errors import INTERRUPTED, UserError, as_user_errors, guarded
from trl_selfdistill.cli.interrupt import StopOnInterrupt
from trl_selfdistill.cli.rewards import load_rewards
from trl_selfdistill.record.progress import ProgressLines


def see_working_directory() -> None:
    """Make modules of the working directory importable: rewards, contexts and row functions live there."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def build(trainer_class: Any, arguments: Arguments) -> Any:
    """The trainer that a command line asks for.

    Raises `UserError` for whatever cannot work.
    """
    run, training, model = arguments.run, arguments.training, arguments.model
    if model.model_name_or_path is None:
        raise UserError("--model_name_or_path is missing: a folder, or a model's name on the Hugging Face Hub.")
    try:  # the error of `transformers` need not name the model
        AutoConfig.from_pretrained(
            model.model_name_or_path, revision=model.model_revision, trust_remote_code=training.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UserError(f"--model_name_or_path {model.model_name_or_path!r} cannot be loaded: {error}") from error
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    with as_user_errors():
        set_seed(training.seed)  # all processes split the data alike
        train, evaluation = load_data(
            run, arguments.mixture, evaluates=training.eval_strategy != "no", seed=training.seed
        )
        trainer = trainer_class(
            model=model.model_name_or_path,
            reward_funcs=load_rewards(run.reward_funcs, run.reward_model_name_or_path, training.max_completion_length),
            args=training,
            train_dataset=train,
            eval_dataset=evaluation,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
            callbacks=[ProgressLines()],
        )
    check_sharding(trainer)
    for printer in (PrinterCallback, ProgressCallback):  # ProgressLines takes their place
        trainer.remove_callback(printer)
    return trainer


def check_sharding(trainer: Any) -> None:
    """Raise `UserError` where FSDP was asked for and Accelerate made something else of it, without a word."""
    kind = trainer.accelerator.distributed_type
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and kind != DistributedType.FSDP:
        raise UserError(
            f"the configuration asks for FSDP, but this run is {kind.value}: Accelerate shards over GPUs, and over "
            "more than one process, only. Use another --accelerate_config."
        )


def train(trainer: Any, dataset_name: str | None, finish: Callable[[], None] | None = None) -> int:
    """Train, save, and push where asked to. The exit status. `finish` is called at the end of a run that got there."""
    args, stop = trainer.args, StopOnInterrupt()
    trainer.add_callback(stop)
    resume: Any = args.resume_from_checkpoint  # a folder; "true" for the newest in output_dir
    with stop.listening():
        trainer.train(resume_from_checkpoint=True if str(resume).lower() == "true" else resume)
    if stop.stopped_at is None:
        trainer.save_model(args.output_dir)
        if args.push_to_hub:
            trainer.push_to_hub(dataset_name=dataset_name)
        if finish is not None:
            finish()
    else:
        trainer.accelerator.print(how_to_go_on(args, stop.stopped_at), flush=True)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return 0 if stop.stopped_at is None else INTERRUPTED


def how_to_go_on(args: Any, step: int) -> str:
    """The last line of a run that was stopped after `step`."""
    saved = f"Stopped after step {step}; saved in {args.output_dir}/checkpoint-{step}."
    if args.save_only_model:
        return f"{saved} It holds the weights alone (save_only_model): a new run may start from them."
    return f"{saved} To go on: the same command with --resume_from_checkpoint true"


def execute(trainer_class: Any, line: CommandLine) -> int:
    """Train, or show what would be trained, in this process."""
    arguments = parse(line, trainer_class.config_class)
    trainer = build(trainer_class, arguments)
    if line.dry_run:
        show(trainer, arguments)
        return 0
    return train(trainer, arguments.run.dataset_name)


def run(trainer_class: Any, argv: list[str] | None = None) -> None:
    """The whole of a training script: `run(RLRTTrainer)`. Ends the process where something is wrong.

    Takes the options of `trl-selfdistill`, except `--accelerate_config`: a script is started by `accelerate launch`.
    """
    arguments = sys.argv[1:] if argv is None else argv

    def read_and_execute() -> int:
        see_working_directory()
        line = read_command_line(arguments, trainer_class.config_class)
        if line.launch or line.accelerate_config:
            first = line.launch[0] if line.launch else "--accelerate_config"
            raise UserError(f"{first} is an option of `accelerate launch`: accelerate launch {first} ... script.py ...")
        return execute(trainer_class, line)

    status = guarded(read_and_execute)
    if status:
        raise SystemExit(status)


def main(argv: list[str]) -> int:
    """`python -m trl_selfdistill.cli.train rlrt ...`: in a process that was launched. The launcher took its options."""
    command, *options = argv
    see_working_directory()
    trainer_class = getattr(trl_selfdistill, ALGORITHMS[command])
    return guarded(lambda: execute(trainer_class, read_command_line(options, trainer_class.config_class)))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
