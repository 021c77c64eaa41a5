"""A trainer whose runs go on after a restart as if they had never stopped."""

import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from trl_selfdistill.context.inputs import ask
from trl_selfdistill.context.memory import ContextMemory
from trl_selfdistill.context.rollout import Rollout
from trl_selfdistill.teachers.base import Teacher
from trl_selfdistill.teachers.ema import EMATeacher
from trl_selfdistill.trainer.checkpoint import (
    RunFinishedError,
    checkpoint_folder,
    checkpoints,
    has_state,
    last_complete_checkpoint,
    no_checkpoint,
    read_state,
    run_in,
    run_of,
    write_run,
    write_state,
)
from trl_selfdistill.trainer.epochs import DrawPassedEpochs
from trl_selfdistill.trainer.lm_head import ExactLogpsTrainer

logger = logging.get_logger(__name__)
MEMORY = "context_memory"
"""The key in a checkpoint under which a `ContextMemory` stands."""


class ResumableTrainer(ExactLogpsTrainer):
    """GRPO with state of its own in every checkpoint: an algorithm's values, a context's memory, a teacher's weights.

    Abstract.
    """

    teacher: Teacher
    memory: ContextMemory | None = None
    """The context builder, where it is one that remembers."""
    epochs: DrawPassedEpochs
    run_id = ""
    """Tells this run from others in the same folder: made by `train()`, kept by a resumed run."""

    def state_values(self) -> dict[str, Any]:
        """What an algorithm must remember between processes, as JSON values."""
        return {}

    def load_state_values(self, values: dict[str, Any]) -> None:
        """Take back what `state_values` gave."""

    def remember(self, rollouts: Sequence[Rollout]) -> None:
        """Have the memory learn from a training batch: from the rollouts of all processes, in global order."""
        if self.memory is not None:
            lessons = [ask(self.memory.lesson, rollout, field="lesson") for rollout in rollouts]
            self.memory.learn(gather_object(lessons))

    def _values(self) -> dict[str, Any]:
        memory = {} if self.memory is None else {MEMORY: self.memory.state_values()}
        return {**self.state_values(), **memory}

    def _load_values(self, values: dict[str, Any], checkpoint: str) -> None:
        remembered = values.pop(MEMORY, None)
        self.load_state_values(values)
        if self.memory is None:
            return
        if remembered is None:
            raise ValueError(
                f"{checkpoint} holds no memory: it was written with another context. Resume with that context, or "
                "start a new run from its weights (model=...) without resume_from_checkpoint."
            )
        self.memory.load_state_values(remembered)

    def _save_checkpoint(self, model, trial):
        tensors = self.teacher.state() if isinstance(self.teacher, EMATeacher) else {}  # gathered by all processes
        if self.args.should_save:
            folder = checkpoint_folder(self._get_output_dir(trial=trial), self.state.global_step)
            write_state(folder, self._name, self._values(), tensors, run=self.run_id)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        has_tensors = isinstance(self.teacher, EMATeacher)
        if checkpoint is None or not (has_tensors or self._values() or has_state(Path(checkpoint))):
            return
        values, tensors = read_state(Path(checkpoint), self._name, tensors=has_tensors)
        self._load_values(values, checkpoint)
        if isinstance(self.teacher, EMATeacher):
            self.teacher.load_state(tensors)

    def _get_train_sampler(self, dataset=None):
        self.epochs.sampler = super()._get_train_sampler(dataset)
        return self.epochs.sampler

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        folder = Path(self.args.output_dir or ".")
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._newest_checkpoint(folder)
        self.run_id = self._run_of(folder, resume_from_checkpoint or None)
        try:
            return super().train(resume_from_checkpoint, **kwargs)
        except RunFinishedError:
            self.callback_handler.on_train_end(self.args, self.state, self.control)
            return TrainOutput(self.state.global_step, 0.0, {})

    def _newest_checkpoint(self, folder: Path) -> str:
        """The checkpoint from which this folder's run goes on. The main process chooses, for all others."""
        found = last_complete_checkpoint(folder, run_in(folder)) if self.accelerator.is_main_process else None
        (name,) = broadcast_object_list([None if found is None else str(found)])
        if name is None:
            raise no_checkpoint(folder)
        if self.accelerator.is_main_process:
            logger.warning(f"resume_from_checkpoint=True goes on from {name}.")
        return name

    def _run_of(self, folder: Path, checkpoint: str | None) -> str:
        """The id of the run that begins now, or goes on from `checkpoint`; written into the run's folder."""
        (run,) = broadcast_object_list([uuid.uuid4().hex if checkpoint is None else run_of(Path(checkpoint))])
        if self.accelerator.is_main_process:
            if checkpoint is None:
                warn_of_other_runs(folder)
            write_run(folder, run)
        return run


def warn_of_other_runs(folder: Path) -> None:
    """Warn where a new run begins in a folder that holds checkpoints."""
    others = [path.name for path in checkpoints(folder)]
    if others:
        warnings.warn(
            f"A new run starts in {folder}, which holds checkpoints of another: {', '.join(others)}. To go on with the "
            f"other one, name its checkpoint: train(resume_from_checkpoint='{folder / others[0]}'). For a new run, set "
            "another output_dir or remove them: they count in save_total_limit, and equal steps are overwritten.",
            stacklevel=4,
        )
