"""`trl-selfdistill rlrt ...`: here, or in the processes that Accelerate starts."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import torch
from accelerate.commands.config import default_config_file
from accelerate.commands.launch import launch_command
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

import trl_selfdistill
from trl_selfdistill.cli.arguments import CommandLine, accelerate_parser, all_options, read_command_line
from trl_selfdistill.cli.commands import ALGORITHMS
from trl_selfdistill.cli.configs import config_path
from trl_selfdistill.cli.errors import UserError, as_user_errors
from trl_selfdistill.cli.train import execute, see_working_directory

TRAIN = "trl_selfdistill.cli.train"


def main(command: str, argv: list[str]) -> int:
    """Train with the algorithm `command`. The exit status."""
    see_working_directory()
    trainer_class: Any = getattr(trl_selfdistill, ALGORITHMS[command])
    line = read_command_line(argv, trainer_class.config_class)
    if line.help_all:
        print("\n".join(all_options(trainer_class.config_class)).lstrip())
        return 0
    asks = bool(line.launch or line.accelerate_config)
    if is_launched():
        if asks:
            raise UserError("this process was launched already: give the launcher's options to the launcher.")
        return execute(trainer_class, line)
    if not asks and not needs_launcher():
        return execute(trainer_class, line)
    return launch(command, argv, launch_arguments(line))


def is_launched() -> bool:
    """Whether torchrun or `accelerate launch` started this process."""
    return bool({"LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys())


def needs_launcher() -> bool:
    """Whether a command without launch options goes through Accelerate, as `trl grpo` does: for several GPUs, and
    where the user has a default configuration."""
    return torch.accelerator.device_count() > 1 or Path(default_config_file).is_file()


def launch_arguments(line: CommandLine) -> list[str]:
    config = [] if line.accelerate_config is None else ["--config_file", str(config_path(line.accelerate_config))]
    return [*config, *line.launch]


def launch(command: str, argv: list[str], options: list[str], module: str | None = None) -> int:
    """Have Accelerate start the processes of `module` (or `TRAIN`). The exit status of the first that failed, else 0.

    Ctrl-C reaches all processes of a terminal. The launcher leaves it to those that train: it would kill them.
    """
    args = accelerate_parser().parse_args([*options, "--module", module or TRAIN, command, *argv])
    if args.cpu and (args.num_processes or 1) > 1:
        raise UserError(
            "Accelerate starts one process for --cpu, whatever --num_processes says. Use torchrun: torchrun "
            f"--nproc_per_node {args.num_processes} -m trl_selfdistill {command} ..."
        )
    os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGHUP,SIGQUIT")
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with as_user_errors():
            launch_command(args)
    except ChildFailedError as error:
        return exit_status(error.get_first_failure()[1].exitcode)
    except subprocess.CalledProcessError as error:
        return exit_status(error.returncode)
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def exit_status(code: int) -> int:
    """As shells have it: 128 and the signal for a process that a signal ended."""
    return code if code >= 0 else 128 - code
