"""All contact with TRL's internals. Only this file may touch a name of TRL that begins with an underscore.

Everything a token signal needs is decided when the rollouts are scored; TRL's loss stays TRL's.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from jaxtyping import Bool, Float
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import _ForwardRedirection

from trl_selfdistill.collator import PrivilegedContextCollator
from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.contexts import (
    ContextBuilder,
    Rollout,
    completion_text,
    context_source,
    group_peers,
    resolve_context,
)
from trl_selfdistill.datachecks import check_column, first_row, gold_of
from trl_selfdistill.metrics import MetricLog
from trl_selfdistill.ops import linear_logps, output_head
from trl_selfdistill.signals import TokenScores, exact_median
from trl_selfdistill.teacher import LiveTeacher, Teacher, make_teacher, scoring_mode

_MEDIA_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
_PER_TOKEN_MEDIA_KEYS = ("token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True, slots=True)
class Rewarded:
    """What TRL's reward step saw, kept until the same call has returned."""

    rows: list[dict[str, Any]]
    prompts: list[Any]
    texts: list[str]
    rollouts: list[Rollout]


class SelfDistillTrainer(GRPOTrainer, ABC):
    """GRPO whose policy, shown privileged context, is its own teacher. Abstract: see `RLRTTrainer`.

    The arguments are those of [`~trl.GRPOTrainer`], plus `context_builder`, a function `Rollout -> str | None` that
    takes the place of `args.context`.
    """

    config_class: ClassVar[type[SelfDistillConfig]]
    args: SelfDistillConfig
    model: Any  # what TRL and accelerate make of it: plain, PEFT, sharded
    num_generations: int
    num_generations_eval: int
    _tokenizer: Any

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
        args = self._own_config(model, args)
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
        self.context_builder = context_builder or resolve_context(args.context)
        self._correctness_index = self._find_correctness_reward()
        self.collator = self._make_collator()
        self._gold_column = None
        for dataset in (train_dataset, *_as_list(eval_dataset)):
            self._check_dataset(dataset, needed=context_builder is None)
        self.teacher = make_teacher(
            self.args.teacher_model_kind,
            self.model,
            preloaded=preloaded,
            sharded=self.is_deepspeed_enabled or self.is_fsdp_enabled,
        )
        self._rewarded: Rewarded | None = None
        self._batches_of_step = (-1, 0)
        self._log = MetricLog(self.accelerator, self._tokenizer)

    # ---- construction ------------------------------------------------------------------------------------------------

    @classmethod
    def _own_config(cls, model: Any, args: GRPOConfig | None) -> SelfDistillConfig:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            return cls.config_class(f"{name.rstrip('/').split('/')[-1]}-{cls._name}")
        if isinstance(args, cls.config_class):
            return args
        if isinstance(args, SelfDistillConfig):
            raise ValueError(f"{cls.__name__} needs an {cls.config_class.__name__}, not a {type(args).__name__}.")
        return cls.config_class.from_grpo(args)

    def _find_correctness_reward(self) -> int:
        name = self.args.correctness_reward
        if name is None:
            return 0
        if name not in self.reward_func_names:
            raise ValueError(
                f"correctness_reward={name!r} is not among the reward functions {self.reward_func_names}. Name the one "
                "whose value tells whether a rollout is correct."
            )
        return self.reward_func_names.index(name)

    def _make_collator(self) -> PrivilegedContextCollator:
        if self._is_vlm and self.args.context_placement == "user":
            raise ValueError(
                "context_placement='user' cannot rewrite prompts of a vision-language model, whose user turns hold "
                "images. Set context_placement='system', which leaves the prompt as it is."
            )
        own_kwargs: Any = self.args.teacher_chat_template_kwargs
        kwargs: Any = self.chat_template_kwargs if own_kwargs is None else own_kwargs
        placement: Any = self.args.context_placement
        own_template = self.args.teacher_template
        return PrivilegedContextCollator(
            self._tokenizer,
            teacher_template=self.default_template(placement) if own_template is None else own_template,
            context_placement=placement,
            max_context_tokens=self.args.max_context_tokens,
            teacher_chat_template_kwargs=kwargs,
            chat_template=self.chat_template,
        )

    @staticmethod
    def default_template(placement: str) -> str | None:
        """The algorithm's own template for a placement; `None` for the collator's."""
        return None

    def _check_dataset(self, dataset: Dataset | IterableDataset | None, *, needed: bool) -> None:
        """Find the gold column, and put a context into the first prompt to see that it can be placed."""
        if dataset is None:
            return
        uses_gold = needed and self.args.context in ("gold", "peer_else_gold")
        column = check_column(
            dataset, self.args.privileged_context_column, needed_by=self.args.context if uses_gold else None
        )
        self._gold_column = column or self._gold_column
        row = first_row(dataset)
        if row is not None:
            gold_of(row, column)
            if "prompt" in row and not self._is_vlm:
                self.collator([row["prompt"]], ["A context."], tools=[self.tools])

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._gold_column is not None and self._gold_column not in self._signature_columns:
            self._signature_columns.append(self._gold_column)

    # ---- rollouts ----------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        # The one place that sees rows, texts and the rewards of all processes. Consumed before the caller returns.
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        finished = [bool(ids) and ids[-1] in ends for ids in completion_ids_list]
        texts = [completion_text(completion) for completion in completions]
        rollouts = self._make_rollouts(inputs, texts, finished, rewards[:, self._correctness_index])
        self._rewarded = Rewarded(rows=inputs, prompts=prompts, texts=texts, rollouts=rollouts)
        return rewards

    def _make_rollouts(
        self, rows: list[dict[str, Any]], texts: list[str], finished: list[bool], rewards: Tensor
    ) -> list[Rollout]:
        """This process's rollouts, with peers from the whole group, which may straddle processes."""
        all_texts, all_finished = gather_object(texts), gather_object(finished)
        enough = (rewards >= self.args.correctness_threshold).tolist()  # False for NaN
        correct = [good and done for good, done in zip(enough, all_finished, strict=True)]
        size = self.num_generations if self.model.training else self.num_generations_eval
        peers = group_peers(all_texts, correct, size, self._batch_seed())
        first = self.accelerator.process_index * len(rows)
        return [
            Rollout(
                row=row,
                completion=all_texts[first + i],
                correct=correct[first + i],
                gold=gold_of(row, self._gold_column),
                peers=peers[first + i],
            )
            for i, row in enumerate(rows)
        ]

    def _batch_seed(self) -> str:
        """Names this batch of rollouts: the same in every process, and the same again after a restart."""
        step, count = self._batches_of_step
        count = count + 1 if step == self.state.global_step else 0
        self._batches_of_step = (self.state.global_step, count)
        mode = "train" if self.model.training else "eval"
        return f"{self.args.seed}/{mode}/{self.state.global_step}/{count}"

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        rewarded, self._rewarded = self._rewarded, None
        assert rewarded is not None, "TRL scored rollouts without calling _calculate_rewards"
        contexts = [self.context_builder(rollout) for rollout in rewarded.rollouts]
        teacher = self._teacher_prompts(batch, rewarded, contexts)
        self._log_rollouts(rewarded, contexts, teacher)
        return self._apply_teacher(batch, teacher, rewarded)

    def _teacher_prompts(self, batch: dict[str, Any], rewarded: Rewarded, contexts: list[str | None]) -> Any:
        own_ids = [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
        ]
        if self.environment_factories is None:
            tools = [self.tools] * len(contexts)
        else:
            tools = [self._env_tools[name] for name in self._batch_environments]
        collated = self.collator(rewarded.prompts, contexts, prompt_ids=own_ids, tools=tools)
        return collated.to(batch["prompt_ids"].device)

    @abstractmethod
    def _apply_teacher(self, batch: dict[str, Any], teacher: Any, rewarded: Rewarded) -> dict[str, Any]:
        """Put into the batch what the loss needs of the teacher. Whatever is added has the batch first."""

    # ---- scoring -----------------------------------------------------------------------------------------------------

    def _score(self, batch: dict[str, Any], teacher: Any, correct: Bool[Tensor, " B"]) -> TokenScores:
        """Log-probabilities and entropies of the sampled tokens under both sides, in one precision, no gradient."""
        rows = self._rows_to_score(batch, teacher["has_context"])
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
            correct=correct,
            median_entropy=exact_median(self._log.all_tokens(scored[1][mask])),
            training=self.model.training,
        )

    def _rows_to_score(self, batch: dict[str, Any], has_context: Bool[Tensor, " B"]) -> list[int]:
        """Rows with a teacher, filled up so that all processes run the same number of forwards (FSDP, ZeRO-3)."""
        if any(key in batch for key in _MEDIA_KEYS):
            return list(range(len(has_context)))  # images are not indexed by row
        rows = has_context.nonzero().flatten().tolist()
        counts: Any = self.accelerator.gather(torch.tensor([len(rows)], device=self.accelerator.device))
        most = int(counts.max())
        return rows + [0] * (most - len(rows))

    def _logps(
        self, weights: Teacher, batch: dict[str, Any], prompt_ids: Tensor, prompt_mask: Tensor, rows: list[int]
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """(log-probability, entropy) of every completion token after `prompt_ids`; zeros in rows not in `rows`."""
        completion_ids, completion_mask = batch["completion_ids"], batch["completion_mask"]
        logps = torch.zeros(completion_ids.shape, dtype=torch.float32, device=completion_ids.device)
        entropies = torch.zeros_like(logps)
        if not rows:
            return logps, entropies
        media = {key: batch[key] for key in _MEDIA_KEYS if key in batch}
        for key in _PER_TOKEN_MEDIA_KEYS:
            if key in media:  # text in front of the prompt is of type 0
                media[key] = _pad_left(media[key], prompt_ids.size(1) + completion_ids.size(1))
        training = self.model.training
        size = self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size
        with weights.weights(self.model) as model, scoring_mode(model):
            out = self._get_per_token_logps_and_entropies(
                model=_Scorer(model, self.accelerator.unwrap_model(model), self.temperature),
                input_ids=torch.cat([prompt_ids[rows], completion_ids[rows]], dim=1),
                attention_mask=torch.cat([prompt_mask[rows], completion_mask[rows]], dim=1),
                logits_to_keep=completion_ids.size(1),
                batch_size=size,
                compute_entropy=True,
                **media,
            )
        logps[rows], entropies[rows] = out[0].float(), out[1].float()
        return logps, entropies

    # ---- logging -----------------------------------------------------------------------------------------------------

    def _add_metrics(self, values: dict[str, float]) -> None:
        mode = "train" if self.model.training else "eval"
        for name, value in values.items():
            self._metrics[mode][name].append(value)

    def _log_rollouts(self, rewarded: Rewarded, contexts: list[str | None], teacher: Any) -> None:
        sources = [context_source(r, c) for r, c in zip(rewarded.rollouts, contexts, strict=True)]
        correct = [rollout.correct for rollout in rewarded.rollouts]
        self._add_metrics(self._log.rollouts(rewarded.texts, correct, sources, teacher))


class _Scorer:
    """Stands in for the model in TRL's log-probability method, which cuts the batch (and its images) into forwards.

    TRL's own head rounds logits to the model's precision; in bfloat16 the error is as large as u_t itself. This one
    keeps float32 logits (`linear_logps`).
    """

    def __init__(self, wrapper: Any, inner: Any, temperature: float) -> None:
        self._wrapper = wrapper
        self._inner = inner
        self._temperature = temperature

    def __call__(self, *, labels: Tensor, fused_lm_head: bool, **inputs: Any) -> SimpleNamespace:
        # Enter through the wrapper's forward, so that the hooks of FSDP and ZeRO-3 gather the weights.
        return _ForwardRedirection()(self._wrapper, self._inner, self._score, labels=labels, **inputs)

    def _score(self, *, labels: Tensor, **inputs: Any) -> SimpleNamespace:
        causal: Any = self._inner.get_base_model() if isinstance(self._inner, PeftModel) else self._inner
        hidden = causal.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        mask = targets != -100
        with output_head(causal) as head:
            logps, entropies = linear_logps(
                hidden[mask],
                head.weight,
                targets[mask],
                bias=head.bias,
                temperature=self._temperature,
                logit_scale=head.logit_scale,
                softcap=head.softcap,
            )
        zeros = torch.zeros(mask.shape, device=logps.device)
        return SimpleNamespace(
            log_probs=zeros.masked_scatter(mask, logps), entropy=zeros.masked_scatter(mask, entropies)
        )


class TokenSignalTrainer(SelfDistillTrainer):
    """Shapes GRPO's advantages token by token and leaves the loss to TRL. Abstract: one method to write."""

    @abstractmethod
    def token_advantages(
        self, advantages: Float[Tensor, " B"], scores: TokenScores
    ) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
        """Token advantages for all rows, and per-token metrics (B, T) with NaN where they do not apply.

        Rows without a teacher keep GRPO's advantage, whatever is returned for them.
        """

    def _apply_teacher(self, batch: dict[str, Any], teacher: Any, rewarded: Rewarded) -> dict[str, Any]:
        device = batch["advantages"].device
        correct = torch.tensor([rollout.correct for rollout in rewarded.rollouts], device=device)
        scores = self._score(batch, teacher, correct)
        plain = batch["advantages"]
        shaped, metrics = self.token_advantages(plain, scores)
        batch["advantages"] = torch.where(scores.mask, shaped, plain.unsqueeze(1).expand_as(shaped))
        self._add_metrics(self._log.tokens(scores, batch["completion_ids"]))
        self._add_metrics(self._log.means(metrics))
        return batch


def _as_list(dataset: Any) -> list[Any]:
    return list(dataset.values()) if isinstance(dataset, dict) else [dataset]


def _pad_left(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (width - values.size(1), 0))
