"""All commands, and what `--help` says of them. Plain text: nothing is imported before a command runs."""

import trl_selfdistill

ALGORITHMS = {
    name.removesuffix("Trainer").lower(): name for name in trl_selfdistill.__all__ if name.endswith("Trainer")
}
"""Trainer by command: an exported trainer has its command."""

SUMMARIES = {
    "antisd": "pushes tokens away from what the teacher expects, behind an entropy gate; needs rewards",
    "opsa": "without a teacher: pushes down the tokens that the policy found least likely; needs no reward",
    "opsd": "pulls every token toward the teacher, who sees the gold solution; needs no reward",
    "poweropd": "rewards each token by how much more probable the teacher finds it; needs no reward",
    "rlcsd": "adds what a right hint says of a token and a wrong one does not; needs rewards",
    "rlrt": "in right answers, reinforces the tokens the teacher did not expect; needs rewards",
    "rlsd": "scales each token's credit by how far the teacher, who sees the gold solution, agrees; needs rewards",
    "sdpo": "pulls every token toward the teacher, who sees a right rollout or feedback; needs rewards",
}
TOOLS = {
    "algorithms": ("trl_selfdistill.cli.algorithms", "print a table of all algorithms, in Markdown"),
    "configs": ("trl_selfdistill.cli.configs", "list the Accelerate configurations; `configs fsdp2` prints a path"),
    "eval": ("trl_selfdistill.cli.eval", "pass@1 and pass@k of a model on a dataset, lengths, epistemic words"),
    "diagnose": ("trl_selfdistill.cli.diagnose", "before training: what each context would teach this model"),
    "controls": ("trl_selfdistill.cli.controls", "run an algorithm beside its controls; see `controls --help`"),
    "env": ("trl_selfdistill.cli.env", "print versions and devices, to paste into an issue"),
    "report": ("trl_selfdistill.cli.report", "an HTML file of what the teacher said; `report RUN_A RUN_B` compares"),
    "preview": ("trl_selfdistill.cli.preview", "show both sides' prompts of a few rows, and check them; no weights"),
    "plan": ("trl_selfdistill.cli.plan", "memory and time of a run on paper, and the configuration to take"),
}
"""(module with a function `main(argv) -> int`, summary) by command."""

EXAMPLE = """\
  trl-selfdistill {command} --model_name_or_path Qwen/Qwen3-0.6B --dataset_name problems.jsonl \\
      --prompt_column problem --solution_column answer --reward_funcs accuracy_reward --output_dir my-run"""

OPTIONS = """\
what to train
  --model_name_or_path M    a folder, or a model's name on the Hugging Face Hub
  --output_dir DIR          where checkpoints, the model and its card go
  --use_peft --lora_r 32    train a small adapter (LoRA) instead of all weights
what to train on
  --dataset_name D          a file (.jsonl, .json, .csv, .parquet), a folder, or a name on the Hub
  --prompt_column C         the column with the problem's text; it becomes one user message
  --solution_column C       the column with the gold solution
  --system_prompt TEXT      a system message in front of every prompt
  --row_function a.b.f      a function of yours that makes a row of each row, instead of the three above
  --reward_funcs R ...      names of TRL's rewards, or dotted paths of functions (also in this folder)
  --context C               what the teacher sees: gold, peer, ..., or the dotted path of a function
how long, how fast
  --max_steps N             optimiser steps; or --num_train_epochs
  --learning_rate X         1e-6 for all weights, 1e-5 for LoRA are usual
  --per_device_train_batch_size N, --num_generations G, --max_completion_length L
how to run
  --config R.yaml           all of this from a file; flags override it
  --accelerate_config NAME  several GPUs: a file, or a name from `trl-selfdistill configs`
  --num_processes N         ... and every other option of `accelerate launch`
  --dry-run                 train nothing: print settings, first teacher prompt, rows, steps, memory
  --resume_from_checkpoint true   go on with the last run in output_dir
  --help_all                every option, about 250 of them, this algorithm's first"""


def overview() -> str:
    """The text of `trl-selfdistill --help`."""
    trainers = [f"  {name:10} {SUMMARIES.get(name, '')}".rstrip() for name in sorted(ALGORITHMS)]
    tools = [f"  {name:10} {summary}" for name, (_, summary) in TOOLS.items()]
    return "\n".join(
        [
            "usage: trl-selfdistill COMMAND [options]",
            "",
            "On-policy self-distillation: the model answers problems, and the same model, shown the solution",
            "or a right answer, tells how good each token was.",
            "",
            "train",
            *trainers,
            "tools",
            *tools,
            "",
            "example",
            EXAMPLE.format(command="rlrt"),
            "",
            "`trl-selfdistill rlrt --help` has the options. `trl-selfdistill --version` prints the version.",
        ]
    )


def algorithm_help(command: str) -> str:
    """The text of `trl-selfdistill rlrt --help`."""
    return "\n".join(
        [
            f"usage: trl-selfdistill {command} [--config R.yaml] [--accelerate_config NAME] [options]",
            "",
            f"Trains with {ALGORITHMS[command]}: {SUMMARIES.get(command, 'see its documentation')}.",
            "",
            OPTIONS,
            "",
            "example",
            EXAMPLE.format(command=command),
        ]
    )
