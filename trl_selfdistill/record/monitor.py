"""The health checks at work: every log line of the training is looked at once, and every complaint is made once."""

from collections.abc import Mapping, Sequence
from typing import Any

from trl_selfdistill.record.health import Facts, findings
from trl_selfdistill.record.log_lines import Entry, History


class HealthMonitor:
    """Follows the log history of a run, which is all the state there is: it stands in every checkpoint.

    A resumed run reads it from there and knows what was said before.
    """

    def __init__(self, thresholds: Mapping[str, float], facts: Facts) -> None:
        self._thresholds, self._facts = thresholds, facts
        self._forget()

    def _forget(self) -> None:
        self._seen = 0
        self._entries: list[Entry] = []
        self._wrong: set[str] = set()

    def see(self, log_history: Sequence[Mapping[str, Any]]) -> list[str]:
        """What is wrong since the newest line and was not a line before. To be called at each log line."""
        if len(log_history) < self._seen:
            self._forget()  # another training of the same trainer
        new: list[str] = []
        for entry in log_history[self._seen :]:
            new = []  # what lines before the newest have shown was said then
            if "loss" in entry:  # evaluations and the summary at the end have none
                new = self._judge(entry)
        self._seen = len(log_history)
        return new

    def _judge(self, entry: Entry) -> list[str]:
        self._entries.append(entry)
        found = findings(History(self._entries), self._thresholds, self._facts)
        new = [message for name, message in found.items() if name not in self._wrong]
        self._wrong = set(found)
        return new
