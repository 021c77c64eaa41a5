"""All contact with TRL's internals. Only this file may touch a name of TRL that begins with an underscore.

TRL samples rollouts and rewards them; this class picks what the teacher is shown and hands it to the algorithm's kind:
`token_signal.py` shapes the advantages, `divergence.py` replaces the loss. Longer than the other files, because what
touches TRL stays together: one file to read when TRL moves.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from jaxtyping import Float
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import (
    BatchEncoding,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from transformers.trainer_utils import TrainOutput
from trl import GRPOConfig, GRPOTrainer

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.context.builders import FEEDBACK_COLUMN, ContextBuilder, resolve_context, verdict
from trl_selfdistill.context.collator import PrivilegedContextCollator
from trl_selfdistill.context.rollout import Rollout, completion_text
from trl_selfdistill.maths import TokenScores, exact_median
from trl_selfdistill.ops import output_head
from trl_selfdistill.record.metrics import MetricLog
from trl_selfdistill.record.token_log import TokenLog
from trl_selfdistill.scoring.forward import causal_lm
from trl_selfdistill.scoring.media import media_of
from trl_selfdistill.scoring.tokens import TokenScorer, rows_to_score
from trl_selfdistill.teachers.base import LiveTeacher, Teacher, scoring_mode
from trl_selfdistill.teachers.ema import EMACallback, EMATeacher
from trl_selfdistill.trainer.build import make_collator, make_teacher
from trl_selfdistill.trainer.datachecks import GoldColumns, datasets_in, reward_index
from trl_selfdistill.trainer.resume import (
    RunFinishedError,
    StopFinishedRun,
    checkpoint_folder,
    has_state,
    newest_checkpoint,
    read_state,
    write_state,
)
from trl_selfdistill.trainer.rollouts import Lesson, make_rollouts


class SelfDistillTrainer(GRPOTrainer, ABC):
    """GRPO whose policy, shown privileged context, is its own teacher. Abstract: see `RLRTTrainer`.

    The arguments are those of [`~trl.GRPOTrainer`], plus `context_builder`, a function `Rollout -> str | None` that
    takes the place of `args.context`.
    """

    config_class: ClassVar[type[SelfDistillConfig]]
    templates: ClassVar[dict[str, str]] = {}
    """The algorithm's own `teacher_template` by placement; the collator's defaults where it has none."""

    args: SelfDistillConfig
    model: Any  # the types that TRL and accelerate give to these are wider than what is used here
    train_dataset: Any
    processing_class: Any
    chat_template: Any
    accelerator: Any
    num_generations: int
    num_generations_eval: int
    _tokenizer: Any
    _evaluation = "eval"  # the name of the evaluation set whose rollouts are logged
    _last_batch: Any = {"train": (-1, 0), "eval": (-1, 0)}  # (step, batch of that step) of the rollouts made last

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | DatasetDict | IterableDatasetDict | dict[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        tools: list[Callable] | None = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
        context_builder: ContextBuilder | None = None,
    ) -> None:
        args = self.config_class.for_trainer(args, model, self._name)
        given, reward_funcs = reward_funcs, self.rewards_for(reward_funcs, args)
        self._assesses = reward_funcs is given
        preloaded = isinstance(model, PeftModel)
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=tools,
            rollout_func=rollout_func,
            environment_factory=environment_factory,
        )
        with output_head(causal_lm(self.model)):
            pass  # a head that cannot be read is refused now, not after the first rollouts
        self.context_builder = context_builder or resolve_context(args.context)
        uses_gold = context_builder is None and args.context in ("gold", "peer_else_gold")
        self._gold = GoldColumns(args.privileged_context_column, needed_by=args.context if uses_gold else None)
        self.collator = self._make_collator(datasets_in(self.train_dataset, eval_dataset))
        self.teacher = make_teacher(args, self.model, self.accelerator, preloaded=preloaded)
        self._correctness_index = reward_index(self.reward_func_names, args.correctness_reward)
        self._rewarded: tuple[list[Any], list[str], list[Rollout]] | None = None
        self.feedback: ContextBuilder = verdict
        self.metric_log = MetricLog(self.accelerator, self._tokenizer)
        self.token_log = TokenLog(self._tokenizer)
        self.add_callback(StopFinishedRun)
        if isinstance(self.teacher, EMATeacher):
            self.add_callback(EMACallback(self.teacher))
        self.set_up()

    def set_up(self) -> None:
        """The end of construction, for what an algorithm keeps."""

    @staticmethod
    def rewards_for(reward_funcs: Any, args: Any) -> Any:
        """The reward functions to train with, given the user's. TRL refuses to go without."""
        return reward_funcs

    def _make_collator(self, datasets: list[Any]) -> PrivilegedContextCollator:
        """The collator, tried on the first prompt of each dataset: what it cannot place is refused before training."""
        prompts = [row["prompt"] for dataset in datasets if (row := self._gold.add(dataset)) and "prompt" in row]
        # A processor's chat template need not be its tokenizer's.
        chat_template = self.chat_template or (self.processing_class.chat_template if self._is_vlm else None)
        parts = (self._tokenizer, self.templates, chat_template, prompts)
        collator = make_collator(self.args, *parts, is_vlm=self._is_vlm)
        # The tokens of a prompt with images come from the processor. They stay as they are.
        own_ids = [[self._tokenizer.eos_token_id]] if self._is_vlm else None
        for prompt in prompts:
            collator([prompt], ["A context."], feedback=["Feedback."], prompt_ids=own_ids, tools=[self.tools])
        return collator

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        kept = [*self._signature_columns, *self._gold.names, FEEDBACK_COLUMN]
        self._signature_columns = list(dict.fromkeys(kept))

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        # The one place that sees rows, texts and the rewards of all processes. Consumed before the caller returns.
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        finished = [bool(ids) and ids[-1] in ends for ids in completion_ids_list]
        texts = gather_object([completion_text(completion) for completion in completions])
        told = rewards[:, self._correctness_index]
        enough = (told >= self.args.correctness_threshold).tolist()  # False for NaN
        rollouts = make_rollouts(
            inputs,
            [self._gold.of(row) for row in inputs],
            texts,
            [good and done for good, done in zip(enough, gather_object(finished), strict=True)],
            (~told.isnan() & self._assesses).tolist(),
            group_size=self.num_generations if self.model.training else self.num_generations_eval,
            seed=self._batch_seed(),
            first=self.accelerator.process_index * len(inputs),
        )
        own_texts = [completion_text(completion, tool_results=False) for completion in completions]
        self._rewarded = (prompts, own_texts, rollouts)
        return rewards

    def _batch_seed(self) -> str:
        """Names this batch of rollouts: the same in every process, and the same again after a restart."""
        mode = "train" if self.model.training else "eval"  # counted apart: a restart does not evaluate again
        step, count = self._last_batch[mode]
        last = (self.state.global_step, count + 1 if step == self.state.global_step else 0)
        self._last_batch = {**self._last_batch, mode: last}
        return "/".join(map(str, (self.args.seed, mode, *last)))

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        assert self._rewarded is not None, "TRL scored rollouts without calling _calculate_rewards"
        (prompts, own_texts, rollouts), self._rewarded = self._rewarded, None
        contexts = [self.context_builder(rollout) for rollout in rollouts]
        feedback = [self.feedback(rollout) for rollout in rollouts]
        lesson = Lesson(rollouts, contexts, self._teacher_prompts(batch, prompts, contexts, feedback))
        self.add_metrics(self.metric_log.rollouts(own_texts, rollouts, contexts, lesson.prompts))
        return self.apply_teacher(batch, lesson)

    def _teacher_prompts(
        self, batch: dict[str, Any], prompts: list[Any], contexts: list[str | None], feedback: list[str | None]
    ) -> BatchEncoding:
        ids_and_masks = zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
        own_ids = [ids[mask.bool()].tolist() for ids, mask in ids_and_masks]
        if self.environment_factories is None:
            tools = [self.tools] * len(contexts)
        else:
            tools = [self._env_tools[name] for name in self._batch_environments]
        encoded = self.collator(prompts, contexts, feedback=feedback, prompt_ids=own_ids, tools=tools)
        return encoded.to(batch["prompt_ids"].device)

    @abstractmethod
    def apply_teacher(self, batch: dict[str, Any], lesson: Lesson) -> dict[str, Any]:
        """Put into the batch what the loss needs of the teacher. Whatever is added has the batch first."""

    def score_tokens(self, batch: dict[str, Any], lesson: Lesson) -> TokenScores:
        """Log-probabilities and entropies of the sampled tokens on both sides, in one precision, without gradient."""
        teacher = lesson.prompts
        rows = rows_to_score(self.accelerator, batch, teacher["has_context"])
        student = self._logps(LiveTeacher(), batch, batch["prompt_ids"], batch["prompt_mask"], rows)
        scored = self._logps(self.teacher, batch, teacher["teacher_prompt_ids"], teacher["teacher_prompt_mask"], rows)
        valid = batch["completion_mask"] * batch.get("tool_mask", 1)
        mask = valid.bool() & teacher["has_context"].unsqueeze(1)
        return TokenScores(
            student_logps=student[0].masked_fill(~mask, 0.0),
            teacher_logps=scored[0].masked_fill(~mask, 0.0),
            student_entropy=student[1].masked_fill(~mask, 0.0),
            teacher_entropy=scored[1].masked_fill(~mask, 0.0),
            mask=mask,
            correct=torch.tensor([rollout.correct for rollout in lesson.rollouts], device=mask.device),
            median_entropy=exact_median(self.metric_log.all_tokens(scored[1][mask])),
            training=self.model.training,
        )

    def _logps(
        self, weights: Teacher, batch: dict[str, Any], prompt_ids: Tensor, prompt_mask: Tensor, rows: list[int]
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """(log-probability, entropy) of every completion token after `prompt_ids`; zeros in rows not in `rows`."""
        completion_ids, completion_mask = batch["completion_ids"], batch["completion_mask"]
        logps = torch.zeros(completion_ids.shape, dtype=torch.float32, device=completion_ids.device)
        entropies = torch.zeros_like(logps)
        if not rows:
            return logps, entropies
        args, training = self.args, self.model.training
        with weights.weights(self.model) as model, scoring_mode(model):
            out = self._get_per_token_logps_and_entropies(
                model=TokenScorer(model, causal_lm(self.accelerator.unwrap_model(model)), self.temperature),
                input_ids=torch.cat([prompt_ids[rows], completion_ids[rows]], dim=1),
                attention_mask=torch.cat([prompt_mask[rows], completion_mask[rows]], dim=1),
                logits_to_keep=completion_ids.size(1),
                batch_size=args.per_device_train_batch_size if training else args.per_device_eval_batch_size,
                compute_entropy=True,
                **media_of(batch, width=prompt_ids.size(1) + completion_ids.size(1)),
            )
        logps[rows], entropies[rows] = out[0].float(), out[1].float()
        return logps, entropies

    def _compute_loss(self, model, inputs):
        return self.batch_loss(model, inputs)

    def policy_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """GRPO's own loss of a micro-batch, divided for gradient accumulation and data parallelism."""
        return super()._compute_loss(model, inputs)

    def batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The loss of a micro-batch, divided likewise. GRPO's, unless an algorithm has one of its own."""
        return self.policy_loss(model, inputs)

    def add_metrics(self, values: dict[str, float]) -> None:
        """Log `values` with the current step, averaged over the batches until TRL's next log line."""
        mode = "train" if self.model.training else "eval"
        for name, value in values.items():
            self._metrics[mode][name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if self.args.log_token_signals:
            name = f"{'' if self.model.training else self._evaluation + '_'}step_{self.state.global_step:06d}"
            self.token_log.write(Path(self.args.output_dir or "."), name, main_process=self.accelerator.is_main_process)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        for dataset in datasets_in(eval_dataset):
            self._gold.add(dataset)
        self._evaluation = metric_key_prefix
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

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
