"""One teacher prompt in the log, as the model reads it: the first thing to look at when a run does not learn."""

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from transformers.utils import logging

logger = logging.get_logger("trl_selfdistill")


class FirstPrompt:
    """Logs the first teacher prompt of a run, special tokens included, at level info, on the main process."""

    def __init__(self, accelerator: Accelerator, tokenizer: Any) -> None:
        self._accelerator = accelerator
        self._tokenizer = tokenizer
        self._shown = False

    def show(self, views: Mapping[str, Any], *, training: bool) -> None:
        """Log the prompt of the first row that has a teacher, once. `views` are the teacher's prompts of a batch."""
        if self._shown or not training or not self._accelerator.is_main_process:
            return
        for name, view in views.items():
            rows = view.prompts["has_context"].nonzero().flatten().tolist()
            if rows:
                text = teacher_prompt(self._tokenizer, view.prompts, rows[0])
                logger.info(f"The first prompt of the teacher (view {name!r}), between the lines:\n---\n{text}\n---")
                self._shown = True
                return


def teacher_prompt(tokenizer: Any, prompts: Any, row: int) -> str:
    """The text of the teacher prompt in `row`, special tokens included, padding left out."""
    ids = prompts["teacher_prompt_ids"][row][prompts["teacher_prompt_mask"][row].bool()]
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False)
