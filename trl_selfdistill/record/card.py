"""The model card: what a reader needs to train the model again. Its text is `card.md`."""

import re
import shlex
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

TEMPLATE = Path(__file__).with_name("card.md")
VERSIONS = ("trl-selfdistill", "trl", "transformers", "torch", "peft", "accelerate", "datasets", "liger-kernel")
_SECRET = re.compile(r"(^|[_-])(token|secret|password|key)$", re.IGNORECASE)
_OF_ONE_MACHINE = re.compile(
    r"dir$|^hub_|^push_to_hub|^report_to$|^run_name$|^logging_|^log_|^disable_tqdm$|^project$|^trackio_|^resume_|^save_"
    r"|^dataloader_|^accelerator_config$|^debug$"
)


def settings_of(args: Any, defaults: Mapping[str, Any], own: list[str]) -> list[tuple[str, str]]:
    """(field, value) of `own` fields, and of all others that are not at their default; as text that is safe in a table.

    Left out is what does not decide the training: folders, logging, the Hub; and everything that looks like a secret.
    """
    others = [name for name in defaults if name not in own and getattr(args, name) != defaults[name]]
    names = [name for name in (*own, *others) if not _SECRET.search(name) and not _OF_ONE_MACHINE.search(name)]
    return [(name, in_table(spelled(getattr(args, name)))) for name in names]


def spelled(value: Any) -> str:
    """A value as one would write it: functions by their dotted name."""
    name = getattr(value, "__qualname__", None)  # objects that can be called have none
    return repr(value) if name is None else f"{value.__module__}.{name}"


def in_table(text: str) -> str:
    """`text` as code in a cell of a Markdown table. The fence is longer than any run of backticks inside."""
    text = " ".join(text.replace("|", "\\|").splitlines())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def fenced(text: str) -> str:
    """`text` as a block of code, whatever it holds."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def command_of(argv: list[str]) -> str | None:
    """The command that started this program, without secrets; `None` in a notebook or a shell, which have none."""
    if not argv or not (argv[0].endswith(".py") or Path(argv[0]).name == "trl-selfdistill"):
        return None
    parts, hide = [], False
    for part in argv:
        name, equals, _ = part.partition("=")
        is_secret = part.startswith("-") and _SECRET.search(name)
        parts.append("***" if hide else f"{name}=***" if is_secret and equals else part)
        hide = bool(is_secret and not equals)
    program = Path(parts[0])
    shown = program.name if program.is_absolute() else str(program)
    return shlex.join([*(["python"] if shown.endswith(".py") else []), shown, *parts[1:]])


def scores_of(history: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(metric, value) of the last evaluation: rewards, correctness, lengths. Empty where there was none."""
    wanted = re.compile(r"reward(s/.*/mean)?$|/correct$|completions/mean_length$|completions/clipped_ratio$")
    for entry in reversed(history):
        found = {k: v for k, v in entry.items() if k.startswith("eval_") and wanted.search(k)}
        if found:
            return [(f"`{name}`", f"{value:.4g}") for name, value in found.items()]
    return []


def versions() -> list[tuple[str, str]]:
    found = []
    for name in VERSIONS:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found


def make_card(data: ModelCardData, facts: Mapping[str, Any]) -> ModelCard:
    """The card with the metadata `data`. No network is asked."""
    return ModelCard.from_template(data, template_path=str(TEMPLATE), **facts)
