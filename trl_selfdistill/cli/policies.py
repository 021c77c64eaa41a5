"""A model to look at (a name on the Hub, a folder, the checkpoint of a run, an adapter), and its prompts as tokens."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, PeftConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import find_adapter_config_file

from trl_selfdistill.cli.errors import UserError
from trl_selfdistill.context.encoding import encode, render
from trl_selfdistill.context.templates import Prompt

Modes = dict[str, dict[str, Any]]
"""Chat-template arguments by the name of a thinking mode."""


def check_folder(name: str) -> None:
    """Raise `UserError` for a folder that holds no model, naming the newest checkpoint in it where there is one."""
    folder = Path(name)
    if not folder.is_dir() or any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        return
    newest = get_last_checkpoint(name)
    hint = f" Its newest checkpoint is {newest}: name that." if newest else ""
    raise UserError(f"--model {name!r} is a folder without config.json or adapter_config.json.{hint}")


def adapter_of(name: str, revision: str | None) -> bool:
    """Whether `name` is an adapter (PEFT) and not a whole model."""
    return find_adapter_config_file(name, revision=revision) is not None


def load_tokenizer(name: str, *, revision: str | None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model. An adapter that was saved without one has its base model's.

    Raises `UserError` for a model that is not there.
    """
    check_folder(name)
    try:
        home, at = name, revision
        if adapter_of(name, revision) and Path(name).is_dir() and not (Path(name) / "tokenizer_config.json").is_file():
            home, at = str(PeftConfig.from_pretrained(name).base_model_name_or_path), None
        return AutoTokenizer.from_pretrained(
            home, revision=at, padding_side="left", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UserError(f"--model {name!r} cannot be loaded: {error}") from error


def load_policy(
    name: str, *, revision: str | None, dtype: str, attn_implementation: str | None, trust_remote_code: bool = False
) -> Any:
    """The model on the accelerator where there is one, in evaluation mode. An adapter is not merged into its base.

    Raises `UserError` for a model that is not there.
    """
    adapter = adapter_of(name, revision)
    loader: Any = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    precision: Any = dtype if dtype == "auto" else getattr(torch, dtype, None)
    if precision is None:
        raise UserError(f"--dtype {dtype!r} is neither auto nor a type of torch, such as bfloat16 or float32.")
    options = {"dtype": precision, "attn_implementation": attn_implementation, "trust_remote_code": trust_remote_code}
    try:
        model = loader.from_pretrained(name, revision=revision, **{k: v for k, v in options.items() if v is not None})
    except (OSError, ValueError) as error:
        raise UserError(f"--model {name!r} cannot be loaded: {error}") from error
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model.to(device or torch.device("cpu")).eval()


def weights_mark(name: str) -> str:
    """What changes when the files of a model folder do: their names, sizes and times. Blank for a name on the Hub."""
    folder = Path(name)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16] if stats else ""


def prompt_tokens(tokenizer: Any, prompt: Prompt, chat: Mapping[str, Any]) -> list[int]:
    """The tokens of a prompt, as the student of a training gets them."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return encode(tokenizer, render(tokenizer, prompt, tools=None, add_generation_prompt=True, **chat))


def knows_thinking(tokenizer: Any, prompt: Prompt) -> bool:
    """Whether the chat template writes another prompt with `enable_thinking` true than with false."""
    if isinstance(prompt, str):
        return False
    on, off = (prompt_tokens(tokenizer, prompt, {"enable_thinking": flag}) for flag in (True, False))
    return on != off


def thinking_modes(tokenizer: Any, prompts: Sequence[Prompt], wanted: str | None) -> tuple[Modes, list[str]]:
    """(modes to run, notes for the reader). `wanted` is "on", "off", "both", or `None` for the template as it is."""
    if wanted is None:
        return {"default": {}}, []
    if not prompts or not knows_thinking(tokenizer, prompts[0]):
        note = f"--thinking {wanted}: the chat template does not know enable_thinking, so there is one mode alone."
        return {"default": {}}, [note]
    names = ("on", "off") if wanted == "both" else (wanted,)
    return {name: {"enable_thinking": name == "on"} for name in names}, []
