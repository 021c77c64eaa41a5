"""`trl-selfdistill env`: what a bug report should say of the machine."""

import platform
from importlib.metadata import PackageNotFoundError, version

import trl_selfdistill
from trl_selfdistill.cli.errors import UserError

PACKAGES = (
    *("torch", "trl", "transformers", "accelerate", "datasets", "peft", "liger-kernel", "triton"),
    *("bitsandbytes", "deepspeed", "vllm", "math-verify", "huggingface-hub"),
)


def main(argv: list[str]) -> int:
    """Print one line per fact."""
    if argv:
        raise UserError("usage: trl-selfdistill env")
    print("Copy this into the issue:\n")
    for name, value in facts().items():
        print(f"- {name}: {value}")
    return 0


def facts() -> dict[str, str]:
    """The facts by name."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "trl-selfdistill": trl_selfdistill.__version__,
        **{package: installed(package) for package in PACKAGES},
        "devices": devices(),
        "accelerate config": accelerate_config(),
    }


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def devices() -> str:
    """The accelerators that torch sees."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"{', '.join(names)} (CUDA {torch.version.cuda})"
    if torch.accelerator.is_available():
        return f"{torch.accelerator.device_count()} x {torch.accelerator.current_accelerator()}"
    return f"CPU with {torch.get_num_threads()} threads"


def accelerate_config() -> str:
    """The user's own default configuration of Accelerate, on one line."""
    from pathlib import Path

    from accelerate.commands.config import default_config_file, load_config_from_file

    if not Path(default_config_file).is_file():
        return "none"
    return str(load_config_from_file(default_config_file).to_dict())
