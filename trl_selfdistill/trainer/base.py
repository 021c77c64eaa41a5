"""The base of all trainers: TRL samples rollouts and rewards them, this class has a teacher look at them.

What the teacher is shown is decided here, when the rollouts are rewarded. What its opinion is for is the business of
the two kinds of algorithm: `token_signal.py` shapes the advantages, `divergence.py` replaces the loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from jaxtyping import Bool, Float
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
from trl import GRPOConfig

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.context.builders import ContextBuilder, as_context, resolve_context, verdict
from trl_selfdistill.context.inputs import as_weight, ask, takes_one
from trl_selfdistill.context.memory import ContextMemory
from trl_selfdistill.context.rollout import Context, Rollout, completion_text
from trl_selfdistill.context.templates import templates_of
from trl_selfdistill.ops import output_head
from trl_selfdistill.scoring.forward import causal_lm
from trl_selfdistill.teachers.ema import EMACallback, EMATeacher
from trl_selfdistill.trainer.arguments import (
    check_builder,
    check_sampler_precision,
    check_skipped,
    configuration_of,
)
from trl_selfdistill.trainer.build import make_collator, make_row_weight, make_teacher
from trl_selfdistill.trainer.checkpoint import StopFinishedRun
from trl_selfdistill.trainer.correctness import make_correctness
from trl_selfdistill.trainer.datachecks import check_data, first_prompts
from trl_selfdistill.trainer.definition import check_definition
from trl_selfdistill.trainer.epochs import DrawPassedEpochs
from trl_selfdistill.trainer.feedback import SilenceCheck, check_feedback, words_of
from trl_selfdistill.trainer.quantized import keep_gradients
from trl_selfdistill.trainer.recorded import RecordedTrainer
from trl_selfdistill.trainer.rollouts import Batch, Lesson, Setting, View, drop_rewards, make_rollouts, remembering


class SelfDistillTrainer(RecordedTrainer, ABC):
    """GRPO whose policy, shown privileged context, is its own teacher. Abstract: see `RLRTTrainer`.

    The arguments are those of [`~trl.GRPOTrainer`], plus `context_builder`, a function
    `Rollout -> Context | str | None` that takes the place of `args.context`.
    """

    config_class: ClassVar[type[SelfDistillConfig]]
    templates: ClassVar[dict[str, str]] = {}
    """The algorithm's own `teacher_template` by placement ("user", "system"); the collator's defaults where empty."""
    views: ClassVar[tuple[str, ...]] = ("teacher",)
    """Names of the teacher prompts under which a row is scored. Empty: no teacher is asked, and none costs anything."""
    reads_context: ClassVar[bool] = True
    """Whether `contexts` asks the setting `context`. False for an algorithm that chooses all that its teachers see."""

    args: SelfDistillConfig
    processing_class: Any
    chat_template: Any
    _tokenizer: Any
    _last_batch: Any = {"train": (-1, 0), "eval": (-1, 0)}  # (step, batch of that step) of the rollouts made last

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_definition(cls, SelfDistillTrainer)

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
        args = configuration_of(self.config_class, args, model, self._name)
        check_skipped(args, self._name, can_skip=type(self).is_used is not SelfDistillTrainer.is_used)
        check_builder(context_builder, asks_teacher=bool(self.views), trainer_name=self._name)
        check_sampler_precision(args, model, quantization_config)
        self._data = check_data(
            args, train_dataset, eval_dataset, context_builder, environment_factory, asks_teacher=bool(self.views)
        )
        check_feedback(args, reward_funcs, rollout_func, environment_factory, context_builder)
        given, reward_funcs = reward_funcs, self.rewards_for(reward_funcs, args)
        self.has_rewards = reward_funcs is given
        self._told: list[Any] = []
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
            rollout_func=remembering(rollout_func, self._told),
            environment_factory=environment_factory,
        )
        keep_gradients(self.model)
        self.check_policy()
        self.prepare_scoring()
        self._build(args, first_prompts(self.train_dataset, eval_dataset), context_builder, preloaded=preloaded)
        self.set_up()
        takes_one(self.feedback, field="feedback")

    def _build(
        self, args: SelfDistillConfig, prompts: list[Any], context_builder: ContextBuilder | None, *, preloaded: bool
    ) -> None:
        self.build_prompts(args, prompts, context_builder, self.model.config)
        self.teacher = make_teacher(args, self.model, self.accelerator, preloaded=preloaded)
        names = self.reward_func_names
        self._correctness = make_correctness(args.correctness_reward, args.correctness_threshold, names)
        self._row_weight = make_row_weight(args.row_weight, assesses=self.has_rewards)
        self._rewarded: tuple[list[Any], list[str], list[Rollout], list[int]] | None = None
        self.prepare_recording(own_builder=context_builder is not None)
        self.epochs = DrawPassedEpochs()
        self.add_callback(self.epochs)
        self.add_callback(StopFinishedRun)
        if isinstance(self.teacher, EMATeacher):
            self.add_callback(EMACallback(self.teacher))

    def build_prompts(
        self, args: SelfDistillConfig, prompts: list[Any], context_builder: ContextBuilder | None, model_config: Any
    ) -> None:
        """What the teacher's prompts are made with. No weights are needed."""
        self.own_builder, builder = context_builder, context_builder or resolve_context(args.context)
        named = "" if context_builder else args.context
        self._context_source = f"context={named!r}" if named else "context_builder"
        self.context_builder, self.memory = builder, builder if isinstance(builder, ContextMemory) else None
        self._silence = SilenceCheck(active=named == "feedback")
        templates = templates_of("memory" if self.memory else named, self.templates)
        # A processor's chat template need not be its tokenizer's.
        chat_template = self.chat_template or (self.processing_class.chat_template if self._is_vlm else None)
        about: Any = {"is_vlm": self._is_vlm, "tools": self.tools, "model_config": model_config}
        self.collator = None
        if self.views:
            self.collator = make_collator(args, self._tokenizer, templates, chat_template, prompts, **about)
        self.feedback: Callable[[Rollout], str | None] = verdict

    def set_up(self) -> None:
        """The end of construction, for what an algorithm keeps."""

    def contexts(self, rollout: Rollout) -> Mapping[str, Any]:
        """What the teacher is shown under each of `views`. Defined by an algorithm that has several of them."""
        return {view: self.context_builder(rollout) for view in self.views}

    def row_weights(self, rollouts: Sequence[Rollout]) -> Float[Tensor, " B"]:
        """The weight of each row: the configuration's `row_weight`. Rows without a teacher have one too."""
        field = f"row_weight={self.args.row_weight!r}"
        weights = [as_weight(ask(self._row_weight, rollout, field=field), maker=field) for rollout in rollouts]
        return torch.tensor(weights, dtype=torch.float32)

    def is_used(self, advantages: Float[Tensor, " B"], correct: Bool[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Rows whose advantages the teacher can change: all, unless an algorithm says less (`skip_unused_scores`)."""
        return torch.ones_like(correct)

    def check_policy(self) -> None:
        """Raise `ValueError` for a policy that this kind of algorithm cannot train."""
        with output_head(causal_lm(self.model)):
            pass  # a head that cannot be read is refused now, not after the first rollouts

    @staticmethod
    def rewards_for(reward_funcs: Any, args: Any) -> Any:
        """The reward functions to train with, given the user's. TRL refuses to go without."""
        return reward_funcs

    @abstractmethod
    def apply_teacher(self, batch: dict[str, Any], lesson: Lesson) -> dict[str, Any]:
        """Put into the batch what the loss needs of the teacher. Whatever is added has the batch first."""

    def batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The loss of a micro-batch, divided for gradient accumulation and data parallelism. GRPO's by default."""
        return self.policy_loss(model, inputs)

    def _prepare_inputs(self, generation_batch):
        self._mode = "train" if self.model.training else "eval"
        return super()._prepare_inputs(generation_batch)

    def _generate_and_score_completions(self, inputs):
        self._mode = "train" if self.model.training else "eval"
        self._told.clear()
        self._data.check_rows(f"{self._mode}_dataset", inputs)
        batch = super()._generate_and_score_completions(inputs)
        if self._mode == "eval":
            self.model.eval()  # continuous batching leaves it in training mode
        if not self.has_rewards:
            drop_rewards(self._metrics[self._mode])
        assert self._rewarded is not None, "TRL scored rollouts without calling _calculate_rewards"
        (prompts, own_texts, rollouts, own_lengths), self._rewarded = self._rewarded, None
        weights = self.row_weights(rollouts).to(batch["advantages"].device)
        lesson = Lesson(rollouts, self._views(batch, prompts, rollouts), weights)
        if self._mode == "train":
            self.remember(rollouts)  # once the teacher's prompts are made: nobody sees a lesson of this batch
        self._first_prompt.show(lesson.views, training=self._mode == "train")
        self.add_metrics(self.metric_log.rollouts(own_texts, rollouts, lesson.views))
        self.add_metrics(self.metric_log.lengths(own_lengths))
        if self.args.row_weight != "none":
            self.add_metrics(self.metric_log.means({"self_distill/row_weight": weights}))
        return self.apply_teacher(batch, lesson)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        # The one place that sees rows, texts and the rewards of all processes. Consumed before the caller returns.
        told = self._told or self._pending_extra_logs.get("feedback") or words_of(self.environments)
        golds = [self._data.gold.of(row) for row in inputs]
        batch = Batch(inputs, prompts, completions, completion_ids_list, golds, told, rewards)
        setting = Setting(
            correctness=self._correctness,
            assesses=self.has_rewards,
            feedback_column=self.args.feedback_column,
            reward_names=self.reward_func_names,
            reward_weights=self.reward_weights,
            end_ids={*self.eos_token_ids, self._tokenizer.pad_token_id},
            max_length=self.args.max_completion_length,
            group_size=self.num_generations if self._mode == "train" else self.num_generations_eval,
            seed=self._batch_seed(),
            first=self.accelerator.process_index * len(inputs),
            step=self.state.global_step,
            keeps_thinking=self.args.context_thinking == "keep",
        )
        own_texts = [completion_text(completion, tool_results=False) for completion in completions]
        rollouts = make_rollouts(batch, setting)
        self._silence.see(rollouts)
        self._rewarded = (prompts, own_texts, rollouts, [len(ids) for ids in completion_ids_list])
        return rewards

    def _batch_seed(self) -> str:
        """Names this batch of rollouts: the same in every process, and the same again after a restart."""
        mode = self._mode  # counted apart: a restart does not evaluate again
        step, count = self._last_batch[mode]
        last = (self.state.global_step, count + 1 if step == self.state.global_step else 0)
        self._last_batch = {**self._last_batch, mode: last}
        return "/".join(map(str, (self.args.seed, mode, *last)))

    def _views(self, batch: dict[str, Any], prompts: list[Any], rollouts: list[Rollout]) -> dict[str, View]:
        made = [ask(self.contexts, rollout, field=self._context_source) for rollout in rollouts] if self.views else []
        views = {}
        for name in self.views:
            contexts = [as_context(contexts.get(name), maker=self._context_source) for contexts in made]
            views[name] = View(contexts, self._teacher_prompts(batch, prompts, contexts, rollouts))
        return views

    def _teacher_prompts(
        self, batch: dict[str, Any], prompts: list[Any], contexts: list[Context | None], rollouts: list[Rollout]
    ) -> BatchEncoding:
        ids_and_masks = zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
        own_ids = [ids[mask.bool()].tolist() for ids, mask in ids_and_masks]
        if self.environment_factories is None:
            tools = [self.tools] * len(contexts)
        else:
            tools = [self._env_tools[name] for name in self._batch_environments]
        feedback = [ask(self.feedback, rollout, field="feedback") for rollout in rollouts]
        lengths = batch["completion_mask"].sum(dim=1).tolist()
        encoded = self.collator(
            prompts, contexts, feedback=feedback, prompt_ids=own_ids, tools=tools, completion_tokens=lengths
        )
        return encoded.to(batch["prompt_ids"].device)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        feedback = [self.args.feedback_column] if self.args.feedback_column else []
        kept = [*self._signature_columns, *self._data.gold.names, *feedback]
        self._signature_columns = list(dict.fromkeys(kept))

    def _compute_loss(self, model, inputs):
        return self.batch_loss(model, inputs)

    def policy_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """GRPO's own loss of a micro-batch, divided for gradient accumulation and data parallelism."""
        return super()._compute_loss(model, inputs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        self._data.add(eval_dataset=eval_dataset)
        self._evaluation = metric_key_prefix
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
