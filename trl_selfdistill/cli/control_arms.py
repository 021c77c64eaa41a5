"""Which runs an algorithm is compared with, and why some of them are left out."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import yaml

import trl_selfdistill
from trl_selfdistill.cli.arguments import (
    Arguments,
    OneLineParser,
    field_names,
    parse,
    read_command_line,
    read_recipe,
)
from trl_selfdistill.cli.commands import ALGORITHMS
from trl_selfdistill.cli.errors import UserError
from trl_selfdistill.settings import default_of
from trl_selfdistill.teacher_config import ONLY_TEACHERS
from trl_selfdistill.trainer import SelfDistillTrainer

METHOD, NO_REFERENCE, WRONG_REFERENCE = "method", "no_reference", "wrong_reference"
NO_TEACHER, GRPO = "no_teacher", "grpo"


@dataclass(frozen=True, slots=True)
class Arm:
    """One run of a comparison, once for each seed."""

    name: str
    command: str
    """The algorithm."""
    changes: dict[str, str] = field(default_factory=dict)
    """Settings that are not the recipe's."""
    left_out: str = ""
    """Why it is not run; blank where it is."""

    @property
    def options(self) -> list[str]:
        return [text for name, value in self.changes.items() for text in (f"--{name}", value)]


def arms_of(command: str, arguments: Arguments, argv: Sequence[str]) -> list[Arm]:
    """The arms of the algorithm `command`, whose settings are `arguments`, read from the command line `argv`."""
    trainer_class: Any = getattr(trl_selfdistill, ALGORITHMS[command])
    references = [
        reference(command, trainer_class, arguments, name, context)
        for name, context in ((NO_REFERENCE, "none"), (WRONG_REFERENCE, "other_gold"))
    ]
    others = [without_teacher(command, arguments), as_grpo(command, trainer_class, arguments)]
    return [Arm(METHOD, command), *(checked(arm, command, argv) for arm in (*references, *others))]


def reference(command: str, trainer_class: Any, arguments: Arguments, name: str, context: str) -> Arm:
    """The algorithm, whose teacher is shown the control `context`."""
    args = arguments.training
    arm: Any = {"name": name, "command": command}
    if not trainer_class.views:
        return Arm(**arm, left_out=f"{command} asks no teacher")
    if not trainer_class.reads_context:
        return Arm(**arm, left_out=f"{command} chooses what its teachers see; the setting `context` is not read")
    if args.context == context:
        return Arm(**arm, left_out=f"context={context!r} is the recipe's own")
    same_prompt = args.teacher_chat_template_kwargs in (None, args.chat_template_kwargs)
    if context == "none" and args.teacher_model_kind == "live" and same_prompt:
        return Arm(
            **arm,
            left_out="without a reference, a teacher with the live weights and the student's chat-template arguments "
            "is the student: u = 0. It is a control with teacher_model_kind 'base' or 'ema', or with "
            "teacher_chat_template_kwargs",
        )
    return Arm(**arm, changes={"context": context})


def without_teacher(command: str, arguments: Arguments) -> Arm:
    """An exported algorithm that asks no teacher. Its prompts are the method's, and so is what both read, where the
    method has a default of its own."""
    trainers = {name: getattr(trl_selfdistill, trainer) for name, trainer in ALGORITHMS.items()}
    found = [name for name, trainer in sorted(trainers.items()) if trainer.views == () and name != command]
    if not found:
        return Arm(NO_TEACHER, command, left_out="the package exports no algorithm without a teacher to compare with")
    args, its = arguments.training, trainers[found[0]].config_class
    shared = {f.name: default_of(f) for f in fields(its) if f.name not in ONLY_TEACHERS}
    apart = [f.name for f in fields(type(args)) if f.name in shared and default_of(f) != shared[f.name]]
    changes = {**{name: str(getattr(args, name)) for name in apart}, "row_weight": "none"}  # it may know the rewards
    if args.chat_template_kwargs is not None:
        changes["chat_template_kwargs"] = json.dumps(args.chat_template_kwargs)
    return Arm(NO_TEACHER, found[0], changes=changes)


def as_grpo(command: str, trainer_class: Any, arguments: Arguments) -> Arm:
    """The algorithm with all its strengths at 0, which is GRPO: tests hold it to that."""
    strengths = [f.name for f in fields(trainer_class.config_class) if f.name.endswith("_strength")]
    if not strengths:
        return Arm(GRPO, command, left_out=f"{command} has no strength that could be 0: it is not GRPO with a term")
    run, weights = arguments.run, arguments.training.reward_weights
    given = run.reward_funcs or run.reward_model_name_or_path
    if not given or (weights is not None and not any(weights)):
        return Arm(
            GRPO, command, left_out="there is no reward (reward_funcs, reward_weights), so it would learn nothing"
        )
    return Arm(GRPO, command, changes={**dict.fromkeys(strengths, "0"), "row_weight": "none"})


def checked(arm: Arm, method: str, argv: Sequence[str]) -> Arm:
    """`arm`, left out where its settings cannot be. The method itself must be: it was read already."""
    if arm.left_out:
        return arm
    config_class = getattr(trl_selfdistill, ALGORITHMS[arm.command]).config_class
    try:
        with command_line(argv, method=method, arm=arm.command) as own:
            parse(read_command_line([*own, *arm.options], config_class), config_class)
    except UserError as error:
        return Arm(arm.name, arm.command, left_out=" ".join(str(error).split()))
    return arm


@contextlib.contextmanager
def command_line(argv: Sequence[str], *, method: str, arm: str) -> Iterator[list[str]]:
    """`argv` of `method` as the algorithm `arm` would read it."""
    own = OneLineParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config")
    mine, options = own.parse_known_args(argv)
    recipe, kept = adapted({} if mine.config is None else read_recipe(mine.config), options, method=method, arm=arm)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(recipe, file)
        file.flush()
        yield ["--config", file.name, *kept]


def adapted(recipe: dict[str, Any], options: Sequence[str], *, method: str, arm: str) -> tuple[dict[str, Any], list]:
    """(recipe, options) without what the algorithm `arm` does not read.

    That is what only `method` has, what only a teacher reads where `arm` asks none, and `skip_unused_scores` where
    `arm` refuses it.
    """
    theirs, its = (getattr(trl_selfdistill, ALGORITHMS[name]) for name in (method, arm))
    gone = field_names(theirs.config_class) - field_names(its.config_class)
    gone |= set() if its.views or arm == method else set(ONLY_TEACHERS)
    gone |= {"skip_unused_scores"} if its.is_used is SelfDistillTrainer.is_used else set()
    kept, keep = [], True
    for text in options:
        if text.startswith("--"):
            keep = text.removeprefix("--").partition("=")[0].replace("-", "_") not in gone
        if keep:
            kept.append(text)
    return {key: value for key, value in recipe.items() if key not in gone}, kept
