"""Is the run healthy? The rules are in `record/health.py`; here is what they know of a trainer, and what follows."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers.utils import logging

from trl_selfdistill.record.health import thresholds_of
from trl_selfdistill.record.monitor import HealthMonitor
from trl_selfdistill.record.symptoms import Facts

logger = logging.get_logger(__name__)

_NO_CORRECT = "no group had a correct rollout"
_NO_CONTEXT = {
    "peer": _NO_CORRECT,
    "own_peer": _NO_CORRECT,
    "peer_else_gold": f"{_NO_CORRECT}, and no row has a gold solution ({{column}})",
    "peer_else_feedback": f"{_NO_CORRECT}, and nothing was said of any rollout",
    "feedback": "nothing was said of any rollout",
    "memory": "no lesson of an earlier batch is about the same task",
    "majority": "in no group did another finished rollout have the most frequent answer",
    "gold": "no row has a gold solution ({column})",
    "other_gold": "no other problem of the batch has a gold solution ({column})",
}


class UnhealthyRunError(RuntimeError):
    """A health check failed, and `health_action="stop"` asked to stop then."""


class HealthCheck:
    """Looks at each log line of the training. Warns on the main process, or stops all of them together."""

    def __init__(self, args: Any, accelerator: Accelerator, facts: Facts) -> None:
        self._action, self._accelerator = args.health_action, accelerator
        self._monitor = HealthMonitor(thresholds_of(args.health_thresholds), facts)

    def see(self, log_history: Sequence[Mapping[str, Any]]) -> None:
        """To be called by every process after each log line. Raises `UnhealthyRunError` where a run must stop."""
        if self._action == "ignore":
            return
        messages = self._monitor.see(log_history)
        if self._action == "stop":
            (messages,) = broadcast_object_list([messages])  # the main process decides: none may be left waiting
            if messages:
                raise UnhealthyRunError(" ".join(messages))
        elif self._accelerator.is_main_process:
            for message in messages:
                logger.warning(message)


def no_context(args: Any, *, own_builder: bool, views: int = 1) -> str:
    """Why no row gets a context, should that be so. `views`: how many a row must have."""
    if views > 1:
        return "no rollout had all that the teacher is to be shown in its several prompts"
    if own_builder or args.context not in _NO_CONTEXT:
        who = "the context_builder" if own_builder else f"the function of context={args.context!r}"
        return f"{who} returned no text for any rollout"
    return _NO_CONTEXT[args.context].format(column=f"privileged_context_column={args.privileged_context_column!r}")
