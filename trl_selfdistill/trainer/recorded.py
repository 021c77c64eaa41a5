"""A trainer that records what its teacher said: metrics, the token log, the first prompt, the check of the sampler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.record.first_prompt import FirstPrompt
from trl_selfdistill.record.history import FOLDER, append_history
from trl_selfdistill.record.metrics import MetricLog
from trl_selfdistill.record.signal_log import Part, SignalLog
from trl_selfdistill.record.symptoms import Facts
from trl_selfdistill.record.tables import CompletionColumns, report
from trl_selfdistill.record.token_log import TokenLog, write_rows
from trl_selfdistill.trainer.described import DescribedTrainer
from trl_selfdistill.trainer.health_check import HealthCheck, no_context
from trl_selfdistill.trainer.rollouts import Lesson
from trl_selfdistill.trainer.sampler_check import DIFFERENCE, SamplerCheck


class RecordedTrainer(DescribedTrainer):
    """Collects the scores of a batch of rollouts from its micro-batches, and logs them once. Abstract."""

    untaught = "plain GRPO"
    """What the algorithm is while no row has a teacher."""
    learns_from_rewards = True
    """Whether the rewards are in the loss."""
    args: SelfDistillConfig
    _tokenizer: Any
    _mode = "train"  # of the batch in hand: TRL may leave an evaluated model in training mode
    _evaluation = "eval"  # the evaluation set whose rollouts are logged

    def prepare_recording(self, *, own_builder: bool) -> None:
        """To be called once the model and its tokenizer are there. `own_builder`: the user gave a `context_builder`."""
        self.metric_log = MetricLog(self.accelerator, self._tokenizer, self.eos_token_ids)
        self.token_log = TokenLog(self._tokenizer, self.args.log_token_signals or 0)
        self._columns = CompletionColumns(self.args.generation_batch_size or 0)
        self._weight = ""  # the name of the metric in the column `weight`
        self._sampler = SamplerCheck(self)
        reason = no_context(self.args, own_builder=own_builder, views=len(self.views))
        facts = Facts(self._name, self.untaught, reason, self.learns_from_rewards, asks_teacher=bool(self.views))
        self._health = HealthCheck(self.args, self.accelerator, facts)
        self._first_prompt = FirstPrompt(self.accelerator, self._tokenizer)
        self._signals = {"train": SignalLog(), "eval": SignalLog()}

    def add_metrics(self, values: Mapping[str, float]) -> None:
        """Log `values` with the current step, averaged over the batches until TRL's next log line."""
        for name, value in values.items():
            self._metrics[self._mode][name].append(value)

    @property
    def signals(self) -> SignalLog:
        """The scores of the generation batch in hand."""
        return self._signals[self._mode]

    def log_signals(self, part: Part) -> None:
        """Keep what a micro-batch was taught; log its statistics when the generation batch is complete."""
        if self.signals.add(part):
            self._write_signals()

    def _write_signals(self) -> None:
        part = self.signals.take()
        if part is None:
            return
        lesson: Lesson = self.signals.lesson
        values = self.metric_log.tokens(part.scores, part.ids) | self.metric_log.means(part.metrics)
        self.add_metrics(values | self._sampler.see(part.scores, values.get(DIFFERENCE)))
        if self.args.log_token_signals:
            self._weight = next(iter(part.metrics), "")
            self.token_log.keep(part, lesson)
            if self.log_completions:
                self._columns.add(part, lesson, self._mode)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._write_signals()  # of a batch that has steps to come
        if self.args.log_token_signals and self.log_completions:
            self._logs["extra"].update(self._columns.columns())
        super().log(logs, start_time)
        if self.args.log_token_signals:
            self._record(logs)
        if "loss" in logs:  # a line of the training; last, as it may stop the run
            self._health.see(self.state.log_history)

    def _record(self, logs: dict[str, float]) -> None:
        """Write what was kept of the last batch, and the numbers of this log line. To be called by every process."""
        rows, step = self.token_log.take(), self.state.global_step
        if not self.accelerator.is_main_process:
            return
        folder = Path(self.args.output_dir or ".")
        append_history(folder, self.run_id, step, logs)
        if rows:
            mode = "" if self.model.training else self._evaluation + "_"
            about = {"run": self.run_id, "trainer": self._name, "weight": self._weight, "views": " ".join(self.views)}
            write_rows(folder / FOLDER, f"{mode}step_{step:06d}", rows, about)
            report(rows, step, self.args.report_to or [])
