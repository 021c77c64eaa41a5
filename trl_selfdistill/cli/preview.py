"""`trl-selfdistill preview`: both sides' prompts of a few rows as the model will see them. Needs no weights."""

import sys
from dataclasses import fields
from itertools import islice
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

import trl_selfdistill
from trl_selfdistill.cli.arguments import OneLineParser, parse, read_command_line, read_recipe
from trl_selfdistill.cli.commands import ALGORITHMS
from trl_selfdistill.cli.data import load_data
from trl_selfdistill.cli.errors import UserError, as_user_errors
from trl_selfdistill.cli.preview_checks import Check
from trl_selfdistill.cli.preview_rows import Look, assertions, assertions_alone, show, show_alone
from trl_selfdistill.cli.preview_text import visible
from trl_selfdistill.cli.train import see_working_directory
from trl_selfdistill.trainer.prompts_only import own_prompt, prompts_only, sides_of

HELP = """\
usage: trl-selfdistill preview [ALGORITHM] --config R.yaml [--rows 2] [--completion TEXT] [options]

Prints what the student and the teacher will read, side by side, and checks it. Needs the tokenizer alone.
  --rows N            how many rows of the training data, 2
  --completion TEXT   stands for what the policy would write; else the gold solution does
All options of the algorithm are taken, as in training. Exit status 1: a check failed."""


def main(argv: list[str]) -> int:
    """Print the preview. The exit status: 1 where a check failed."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(HELP)
        return 0
    see_working_directory()
    own = OneLineParser(add_help=False, allow_abbrev=False)
    own.add_argument("--rows", type=int, default=2)
    own.add_argument("--completion")
    mine, rest = own.parse_known_args(argv)
    if mine.rows < 1:
        raise UserError(f"--rows {mine.rows} must be at least 1.")
    named = [rest.pop(0)] if rest and not rest[0].startswith("-") else []
    trainer_class = getattr(trl_selfdistill, ALGORITHMS[algorithm(named, rest)])
    if not torch.accelerator.is_available():
        rest += ["--use_cpu", "true"]  # a recipe for a GPU may be looked at without one
    arguments = parse(read_command_line(rest, trainer_class.config_class), trainer_class.config_class)
    with as_user_errors():
        dataset, _ = load_data(arguments.run, arguments.mixture, evaluates=False, seed=arguments.training.seed)
        rows = list(islice(iter(dataset), mine.rows))
        if not rows:
            raise UserError("the training data has no rows.")
        trainer = prompts_only(trainer_class, arguments.training, *load_tokenizer(arguments), dataset)
        return preview(trainer, rows, mine.completion)


def algorithm(named: list[str], options: list[str]) -> str:
    """The algorithm that is named, or that alone has one of the recipe's keys or of the options."""
    names = sorted(ALGORITHMS)
    if named and named[0] not in ALGORITHMS:
        raise UserError(f"preview {named[0]!r}: there is no such algorithm. There are: {', '.join(names)}.")
    if named:
        return named[0]
    finder = OneLineParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    found, rest = finder.parse_known_args(options)
    given = {text.lstrip("-").partition("=")[0].replace("-", "_") for text in rest if text.startswith("--")}
    given |= set(read_recipe(found.config)) if found.config else set()
    shared = {f.name for f in fields(trl_selfdistill.SelfDistillConfig)}
    own = {n: {f.name for f in fields(getattr(trl_selfdistill, ALGORITHMS[n]).config_class)} - shared for n in names}
    fits = [name for name in names if own[name] & given]
    if len(fits) != 1:
        raise UserError(f"name the algorithm: trl-selfdistill preview {names[-1]} ... There are: {', '.join(names)}.")
    return fits[0]


def load_tokenizer(arguments: Any) -> tuple[Any, Any]:
    """(tokenizer, configuration) of the model."""
    model = arguments.model
    if model.model_name_or_path is None:
        raise UserError("--model_name_or_path is missing: a folder, or a model's name on the Hugging Face Hub.")
    kwargs = {"revision": model.model_revision, "trust_remote_code": arguments.training.trust_remote_code}
    config = AutoConfig.from_pretrained(model.model_name_or_path, **kwargs)
    if reads_images(config):
        raise UserError("preview shows text alone. For a model that reads images use --dry-run.")
    return AutoTokenizer.from_pretrained(model.model_name_or_path, padding_side="left", **kwargs), config


def reads_images(config: Any) -> bool:
    """Whether the configuration is that of a vision-language model."""
    return "vision_config" in config.to_dict()


def preview(trainer: Any, rows: list[Any], completion: str | None) -> int:
    """Print all `rows`, and the first check that failed on standard error. The exit status."""
    look, failed = Look(trainer.processing_class), []
    for number, row in enumerate(rows):
        if not trainer.views:
            where = f"row {number}: {type(trainer).__name__} asks no teacher"
            print(f"\n== {where}")
            show_alone(look, own_prompt(trainer, row))
            failed += told(where, assertions_alone(trainer, look, row))
        for sides in sides_of(trainer, row, completion):
            where = f"row {number}, view {sides.view!r}"
            print(f"\n== {where}")
            show(trainer, look, sides)
            failed += told(where, assertions(trainer, look, row, sides))
    if failed:
        print(f"trl-selfdistill: preview: {visible(failed[0])}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def told(where: str, checks: list[Check]) -> list[str]:
    """Print `checks`. One line for each that failed."""
    for check in checks:
        print(f"{'-- ' if check.ok is None else 'ok ' if check.ok else 'FAILED'} {check.what}")
    return [f"{where}: not so: {check.what}. {check.remedy}" for check in checks if check.ok is False]
