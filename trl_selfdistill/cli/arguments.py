"""From a command line and a recipe to settings. TRL's parser reads them; this file finds what nobody knows."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser
from trl.scripts.utils import DatasetConfig

from trl_selfdistill.cli.errors import UserError, as_user_errors
from trl_selfdistill.context.inputs import did_you_mean
from trl_selfdistill.settings import default_of


@dataclass
class RunArguments(ScriptArguments):
    """TRL's script arguments, the rewards, and how a dataset's columns become a prompt and a solution."""

    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={"help": "Reward functions: names from `trl.rewards`, or dotted import paths."},
    )
    reward_model_name_or_path: str | None = field(
        default=None, metadata={"help": "A reward model, which comes before `reward_funcs`."}
    )
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column with the problem. Text becomes one user message; a conversation stays."}
    )
    solution_column: str | None = field(
        default=None, metadata={"help": "Column with the gold solution; it becomes `solution`, numbers as text."}
    )
    system_prompt: str | None = field(default=None, metadata={"help": "A system message in front of every prompt."})
    row_function: str | None = field(
        default=None,
        metadata={
            "help": "Dotted path of a function that takes a row and returns columns to add, `prompt` among them."
        },
    )


@dataclass(frozen=True)
class Arguments:
    """All settings of a run."""

    run: RunArguments
    training: Any
    model: ModelConfig
    mixture: DatasetMixtureConfig


@dataclass(frozen=True)
class CommandLine:
    """A command line in its parts."""

    recipe: str | None
    options: list[str]
    """Without those in the other fields, but with those of `launch`."""
    launch: list[str]
    """Options of `accelerate launch`, of the recipe and of the command line."""
    accelerate_config: str | None
    dry_run: bool
    help_all: bool


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class Parser(TrlParser):
    """TRL's parser, whose errors are one line."""

    def __init__(self, config_class: type) -> None:
        super().__init__(argument_types(config_class), add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def argument_types(config_class: type) -> tuple[Any, ...]:
    return (RunArguments, config_class, ModelConfig, DatasetMixtureConfig)


def field_names(config_class: type) -> set[str]:
    return {f.name for part in argument_types(config_class) for f in fields(part)}


def read_command_line(argv: list[str], config_class: type) -> CommandLine:
    """`argv` in its parts.

    Raises `UserError` for a key or an option that neither we nor TRL nor Accelerate know.
    """
    own = OneLineParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config")
    own.add_argument("--accelerate_config", "--accelerate-config")
    own.add_argument("--dry_run", "--dry-run", action="store_true")
    own.add_argument("--help_all", "--help-all", action="store_true")
    mine, options = own.parse_known_args(argv)
    recipe = {} if mine.config is None else read_recipe(mine.config)
    launch = [*recipe_launch_options(recipe, mine.config, config_class), *launch_options(options, config_class)]
    accelerate_config = mine.accelerate_config or recipe.get("accelerate_config")
    return CommandLine(mine.config, options, launch, accelerate_config, mine.dry_run, mine.help_all)


def read_recipe(file: str) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        recipe = yaml.safe_load(Path(file).read_text())
    except OSError as error:
        raise UserError(f"--config {file}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file} is no YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{file} must hold lines such as 'learning_rate: 1.0e-6'.")
    return recipe


def accelerate_parser() -> Any:
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser()


def accelerate_names() -> set[str]:
    return set(vars(accelerate_parser().parse_args(["script"])))


def recipe_launch_options(recipe: dict[str, Any], file: str | None, config_class: type) -> list[str]:
    """The keys of a recipe that are options of `accelerate launch`. Raises `UserError` for a key that nobody knows."""
    ours = {*field_names(config_class), "env", "accelerate_config"}
    theirs = accelerate_names() if recipe.keys() - ours else set()
    for key in recipe.keys() - ours - theirs:
        raise UserError(f"unknown key {key!r} in {file}.{did_you_mean(str(key), ours | theirs)}")
    entries = recipe.get("datasets") or []
    known = [f.name for f in fields(DatasetConfig)]
    for key in (key for entry in entries for key in entry if key not in known):
        raise UserError(f"unknown key {key!r} under 'datasets' in {file}.{did_you_mean(str(key), known)}")
    given = {key: value for key, value in recipe.items() if key not in ours and value is not False}
    return [
        text for key, value in given.items() for text in ([f"--{key}"] if value is True else [f"--{key}", str(value)])
    ]


def launch_options(options: list[str], config_class: type) -> list[str]:
    """Those of `options` that `accelerate launch` takes. Raises `UserError` for one that nobody knows."""
    _, left = Parser(config_class).parse_known_args(options)
    if not left:
        return []
    end = "end of options"
    parsed, unknown = accelerate_parser().parse_known_args([*left, end])
    flags = [text for text in unknown if text.startswith("-")]
    if flags:
        name = flags[0].partition("=")[0]
        names = (f"--{known}" for known in field_names(config_class) | accelerate_names())
        raise UserError(f"unknown option {name!r}.{did_you_mean(name.replace('-', '_').replace('__', '--', 1), names)}")
    if parsed.training_script != end:
        raise UserError(
            f"unexpected argument {parsed.training_script!r}: every setting is an option, as --max_steps 10."
        )
    return left


def parse(line: CommandLine, config_class: type) -> Arguments:
    """The settings. Raises `UserError` for a value that cannot be."""
    recipe = [] if line.recipe is None else ["--config", line.recipe]
    with as_user_errors():
        parser = Parser(config_class)
        *parts, _ = parser.parse_args_and_config([*recipe, *line.options], return_remaining_strings=True)
    return Arguments(*parts)


def all_options(config_class: type) -> Iterator[str]:
    """A line per option, those of the algorithm first, grouped by the class that declares them."""
    ours = [c for c in config_class.__mro__ if "__dataclass_fields__" in vars(c)]
    seen: set[str] = set()
    # A field stands with the class that declares it first; GRPO's and transformers' come last.
    for part in (ours[0], RunArguments, ModelConfig, DatasetMixtureConfig, *ours[1:]):
        inherited = {f.name for c in part.__mro__[1:] if part in ours and c in ours for f in fields(c)}
        mine = [f for f in fields(part) if f.name not in seen | inherited]
        seen |= {f.name for f in mine}
        yield f"\n{part.__name__}"
        for f in mine:
            yield f"  --{f.name} (default: {default_of(f)})\n      {f.metadata.get('help', '')}"
