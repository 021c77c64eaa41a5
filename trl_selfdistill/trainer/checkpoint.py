"""What a self-distillation run must remember between processes: JSON for values, safetensors for weights. No pickle."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

VALUES = "selfdistill_state.json"
TENSORS = "selfdistill_teacher.safetensors"
RUN = "selfdistill_run.json"
"""In the folder of a run, with its id."""


def checkpoint_folder(run_folder: str, step: int) -> Path:
    """The folder into which transformers saves step `step`."""
    return Path(run_folder) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def write_state(
    folder: Path, trainer: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor], *, run: str
) -> None:
    """Write the state of the trainer called `trainer` into a checkpoint folder, which need not exist yet.

    `run` is the id of the run that the checkpoint belongs to.

    To be called before transformers writes its own files. The one that it writes last is removed here, so that a folder
    written a second time does not look complete halfway.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
    if tensors:
        save_file(dict(tensors), folder / f"{TENSORS}.unfinished")
        os.replace(folder / f"{TENSORS}.unfinished", folder / TENSORS)
    write_json(folder / VALUES, {"trainer": trainer, "run": run, **values})


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write `values` as a whole or not at all, also when the process is killed."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.write_text(json.dumps(values, indent=1))
    os.replace(unfinished, file)


def has_state(folder: Path) -> bool:
    """Whether a trainer of this package wrote into `folder`. One that keeps no state may resume from any other."""
    return (folder / VALUES).is_file()


def read_state(folder: Path, trainer: str, *, tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(values, tensors) that `write_state` wrote for the same trainer.

    Raises `ValueError` when they are missing or were written by another trainer.
    """
    missing = [name for name in (VALUES, *([TENSORS] if tensors else [])) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} has no {missing[0]}, without which {trainer} cannot go on where it stopped. It was written by "
            "another trainer or with other settings. Resume from a checkpoint of this run, or start a new run from its "
            "weights (model=...) without resume_from_checkpoint."
        )
    values = json.loads((folder / VALUES).read_text())
    if values.pop("trainer") != trainer:
        raise ValueError(
            f"{folder / VALUES} was not written by {trainer}. Resume with the trainer that wrote it, or start a new "
            "run from its weights (model=...) without resume_from_checkpoint."
        )
    values.pop("run", None)
    return values, load_file(folder / TENSORS) if tensors else {}


class RunFinishedError(Exception):
    """A resumed run has no step left."""


class StopFinishedRun(TrainerCallback):
    """Ends a resumed run that was killed between its last save and its end; transformers would train one step more."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps > 0:
            raise RunFinishedError


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, complete or not, the newest first."""
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def last_complete_checkpoint(folder: Path, run: str | None = None) -> Path | None:
    """The newest checkpoint in `folder` that was written to its end, `None` when there is none.

    With `run`, the newest one of the run with that id. transformers takes the newest folder, complete or not, whoever
    wrote it; a run that was killed while it saved could not go on, and one in a used folder would go on as another.
    """
    mine = (path for path in checkpoints(folder) if run is None or run_of(path) == run)
    return next((path for path in mine if is_complete(path)), None)


def no_checkpoint(folder: Path) -> ValueError:
    """The error where `resume_from_checkpoint=True` finds none."""
    others = [path.name for path in checkpoints(folder)]
    seen = f" Those that are there are of other runs or unfinished: {', '.join(others)}." if others else ""
    return ValueError(
        f"resume_from_checkpoint=True found no complete checkpoint of this run in {folder}.{seen} Start without it, or "
        "name a folder (resume_from_checkpoint='.../checkpoint-100')."
    )


def run_of(checkpoint: Path) -> str:
    """The id of the run that wrote `checkpoint`; blank for one without an id."""
    try:
        return json.loads((checkpoint / VALUES).read_text()).get("run", "")
    except (OSError, json.JSONDecodeError):
        return ""


def run_in(folder: Path) -> str | None:
    """The id of the run whose folder this is, `None` where nothing says so."""
    file = folder / RUN
    return json.loads(file.read_text())["run"] if file.is_file() else None


def write_run(folder: Path, run: str) -> None:
    """Say that `folder` is that of the run with this id."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN, {"run": run})


def is_complete(checkpoint: Path) -> bool:
    """Whether transformers wrote the trainer's state, which comes last, to its end."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return True
