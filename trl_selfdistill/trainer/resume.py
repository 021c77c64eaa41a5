"""A trainer whose runs go on after a restart as if they had never stopped."""

from pathlib import Path
from typing import Any

from transformers.trainer_utils import TrainOutput
from trl import GRPOTrainer

from trl_selfdistill.teachers.base import Teacher
from trl_selfdistill.teachers.ema import EMATeacher
from trl_selfdistill.trainer.checkpoint import (
    RunFinishedError,
    checkpoint_folder,
    has_state,
    newest_checkpoint,
    read_state,
    write_state,
)


class ResumableTrainer(GRPOTrainer):
    """GRPO with state of its own in every checkpoint: an algorithm's values, a teacher's weights. Abstract."""

    teacher: Teacher

    def state_values(self) -> dict[str, Any]:
        """What an algorithm must remember between processes, as JSON values."""
        return {}

    def load_state_values(self, values: dict[str, Any]) -> None:
        """Take back what `state_values` gave."""

    def _save_checkpoint(self, model, trial):
        tensors = self.teacher.state() if isinstance(self.teacher, EMATeacher) else {}  # gathered by all processes
        if self.args.should_save:
            folder = checkpoint_folder(self._get_output_dir(trial=trial), self.state.global_step)
            write_state(folder, self._name, self.state_values(), tensors)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        has_tensors = isinstance(self.teacher, EMATeacher)
        if checkpoint is None or not (has_tensors or self.state_values() or has_state(Path(checkpoint))):
            return
        values, tensors = read_state(Path(checkpoint), self._name, tensors=has_tensors)
        self.load_state_values(values)
        if isinstance(self.teacher, EMATeacher):
            self.teacher.load_state(tensors)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(newest_checkpoint(Path(self.args.output_dir or ".")))
        try:
            return super().train(resume_from_checkpoint, **kwargs)
        except RunFinishedError:
            self.callback_handler.on_train_end(self.args, self.state, self.control)
            return TrainOutput(self.state.global_step, 0.0, {})
