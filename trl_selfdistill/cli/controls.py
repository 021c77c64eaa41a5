"""`trl-selfdistill controls rlrt --config R.yaml`: an algorithm beside the runs that decide whether to believe it."""

import contextlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import Any

import yaml

import trl_selfdistill
from trl_selfdistill.cli.arguments import OneLineParser, parse, read_command_line, read_recipe
from trl_selfdistill.cli.commands import ALGORITHMS
from trl_selfdistill.cli.control_arms import Arm, adapted, arms_of
from trl_selfdistill.cli.control_run import MODULE, RESULT
from trl_selfdistill.cli.control_table import table
from trl_selfdistill.cli.errors import INTERRUPTED, UserError
from trl_selfdistill.cli.launch import exit_status, is_launched
from trl_selfdistill.cli.train import see_working_directory
from trl_selfdistill.context.inputs import did_you_mean
from trl_selfdistill.trainer.checkpoint import last_complete_checkpoint, run_in, write_json

SETTINGS, LOG = "control_settings.json", "log.txt"
HELP = """\
usage: trl-selfdistill controls ALGORITHM --config R.yaml [--seeds 0 1 2] [--dry-run] [options]

Runs the algorithm and its controls one after the other, with the same data, steps and seeds, each in
OUTPUT_DIR/ARM/seed-N, and prints one table. Finished runs are skipped, and one that was stopped goes on.
All options of `trl-selfdistill ALGORITHM` are taken, and mean the same for every arm.

  method            the algorithm as the recipe says
  no_reference      its teacher sees no privileged text (context none)
  wrong_reference   its teacher sees the solution of another problem (context other_gold)
  no_teacher        an algorithm that asks no teacher
  grpo              the algorithm with strength 0, which is GRPO"""


@dataclass(frozen=True, slots=True)
class Run:
    """One arm with one seed."""

    arm: Arm
    seed: int
    folder: Path
    recipe: dict[str, Any]
    options: list[str]

    @property
    def argv(self) -> list[str]:
        """The command line of `trl-selfdistill` for this run, once its recipe is written."""
        own = ["--config", str(self.folder / "recipe.yaml"), *self.options, *self.arm.options]
        return [self.arm.command, *own, "--output_dir", str(self.folder), "--seed", str(self.seed)]

    @property
    def settings(self) -> dict[str, Any]:
        return {"recipe": self.recipe, "command": self.argv}


def main(argv: list[str]) -> int:
    """Run what is not done yet. The exit status: 1 where an arm failed."""
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP)
        return 0
    if argv[0] not in ALGORITHMS:
        near = did_you_mean(argv[0], ALGORITHMS)
        raise UserError(f"controls of what? {argv[0]!r} is none of {', '.join(sorted(ALGORITHMS))}.{near}")
    if is_launched():
        raise UserError("controls launches each of its runs: start it without torchrun and `accelerate launch`.")
    see_working_directory()
    output, arms, runs, dry_run = plan(argv[0], argv[1:])
    print("\n".join(overview(arms, runs)), flush=True)
    if dry_run:
        return 0
    for run in runs:
        check_folder(run)
    records = [record_of(arm) for arm in arms if arm.left_out]
    status = 0
    for run in runs:
        record = perform(run)
        records.append(record)
        write_json(output / "controls.json", {"algorithm": argv[0], "runs": records})
        status = max(status, int(record["status"] == "failed"))
        if record["status"] == "stopped":
            print("Stopped. The same command goes on.", flush=True)
            return INTERRUPTED
    print("\n".join(["", *table(records)]), flush=True)
    return status


def plan(command: str, argv: list[str]) -> tuple[Path, list[Arm], list[Run], bool]:
    """(output folder, arms, runs, whether nothing is to be run). Raises `UserError` for settings that cannot be."""
    own = OneLineParser(add_help=False, allow_abbrev=False)
    own.add_argument("--seeds", nargs="+", type=int)
    own.add_argument("--config")
    own.add_argument("--dry_run", "--dry-run", action="store_true")
    mine, options = own.parse_known_args(argv)
    recipe = {} if mine.config is None else read_recipe(mine.config)
    config_class = getattr(trl_selfdistill, ALGORITHMS[command]).config_class
    argv = [*([] if mine.config is None else ["--config", mine.config]), *options]
    arguments = parse(read_command_line(argv, config_class), config_class)
    training = arguments.training
    for name in ("push_to_hub", "resume_from_checkpoint"):
        if getattr(training, name):
            raise UserError(f"{name} is not for controls: leave it out. Unfinished runs go on by themselves.")
    seeds = list(dict.fromkeys(mine.seeds or [training.seed]))
    arms, output = arms_of(command, arguments, argv), Path(training.output_dir)
    runs = []
    for arm in (arm for arm in arms if not arm.left_out):
        its_recipe, its_options = adapted(recipe, options, method=command, arm=arm.command)
        for seed in seeds:
            runs.append(Run(arm, seed, output / arm.name / f"seed-{seed}", its_recipe, its_options))
    return output, arms, runs, mine.dry_run


def overview(arms: Sequence[Arm], runs: Sequence[Run]) -> list[str]:
    """What will be run, and what will not."""
    lines = []
    for arm in arms:
        seeds = ", ".join(str(run.seed) for run in runs if run.arm is arm)
        says = (
            f"left out: {arm.left_out}" if arm.left_out else f"{shlex.join([arm.command, *arm.options])}; seed {seeds}"
        )
        lines.append(f"{arm.name:16} {says}")
    return lines


def check_folder(run: Run) -> None:
    """Raise `UserError` where the folder of `run` holds a run with other settings."""
    file = run.folder / SETTINGS
    if file.is_file() and loads(file.read_text()) != run.settings:
        raise UserError(
            f"{run.folder} holds a run with other settings (see {file}). Give another --output_dir, or remove it."
        )


def record_of(arm: Arm, run: Run | None = None, *, status: str = "left out", reason: str = "") -> dict[str, Any]:
    """What controls.json says of a run, or of an arm that was left out."""
    record = {"arm": arm.name, "algorithm": arm.command, "changes": arm.changes, "status": status}
    record |= {"reason": reason or arm.left_out, "seed": None if run is None else run.seed}
    if run is not None:
        record |= {"folder": str(run.folder), "command": shlex.join(["trl-selfdistill", *run.argv])}
    if run is not None and status == "finished":
        record["result"] = loads((run.folder / RESULT).read_text())
    return record


def perform(run: Run) -> dict[str, Any]:
    """Run it in a process of its own, whose crash takes nothing else with it. Its record."""
    name = f"{run.arm.name}, seed {run.seed}"
    if (run.folder / RESULT).is_file():
        print(f"{name}: finished already", flush=True)
        return record_of(run.arm, run, status="finished")
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "recipe.yaml").write_text(yaml.safe_dump(run.recipe))
    write_json(run.folder / SETTINGS, run.settings)
    begun = last_complete_checkpoint(run.folder, run_in(run.folder))
    resume = [] if begun is None else ["--resume_from_checkpoint", str(begun)]
    print(f"{name}: {'starts' if begun is None else f'goes on from {begun.name}'}; {run.folder / LOG}", flush=True)
    start = time.monotonic()
    with (run.folder / LOG).open("a") as log, leaving_interrupts_to_the_run():
        code = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(run.folder), *run.argv, *resume], stdout=log, stderr=subprocess.STDOUT
        ).wait()
    status = exit_status(code)
    if status == INTERRUPTED:
        return record_of(run.arm, run, status="stopped")
    if status or not (run.folder / RESULT).is_file():
        reason = f"exit status {status}: {last_line(run.folder / LOG)}"
        print(f"{name}: failed: {reason}", flush=True)
        return record_of(run.arm, run, status="failed", reason=reason)
    print(f"{name}: finished in {time.monotonic() - start:.0f} s", flush=True)
    return record_of(run.arm, run, status="finished")


def last_line(file: Path) -> str:
    lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


@contextlib.contextmanager
def leaving_interrupts_to_the_run() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal: the run saves a checkpoint and ends, and this one waits for it."""
    before = signal.signal(signal.SIGINT, lambda *_: print("\nStopping after this batch of rollouts.", flush=True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
