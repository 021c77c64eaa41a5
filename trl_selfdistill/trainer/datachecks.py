"""What can be known of datasets before a model is loaded, and of a stream's rows as they come."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from tqdm.auto import tqdm

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.context.builders import NEEDS_GOLD
from trl_selfdistill.context.inputs import takes_one
from trl_selfdistill.trainer.rowchecks import GoldColumns, check_prompt

_LIKE_PROMPTS = ("problem", "question", "query", "instruction", "input", "messages", "text")


class DataChecks:
    """The checks of a run's datasets, and where their gold solutions stand.

    Args:
        args: the configuration.
        builder: the user's context builder, in the place of `args.context`.
        environment: the user's environments, which may own prompts.
        asks_teacher: whether there is a teacher, whose context has to go somewhere.

    Raises `ValueError` for a builder that does not take a rollout.
    """

    def __init__(
        self,
        args: SelfDistillConfig,
        builder: Callable[..., Any] | None,
        environment: Any,
        *,
        asks_teacher: bool = True,
    ) -> None:
        if builder is not None:
            takes_one(builder, field="context_builder")
        self._args = args
        self._owns_prompts = environment is not None
        self._placement = args.context_placement if asks_teacher else None
        needs_gold = asks_teacher and builder is None and args.context in NEEDS_GOLD
        self.gold = GoldColumns(args.privileged_context_column, needed_by=args.context if needs_gold else None)

    def add(self, train_dataset: Any = None, eval_dataset: Any = None) -> None:
        """Check datasets before they are used: columns, and the rows of those that are no streams.

        Raises `ValueError` with the name of the set, the row and the value, and the way out.
        """
        for name, dataset in named_datasets(train_dataset, eval_dataset).items():
            training = name == "train_dataset"
            row = None if is_stored(dataset) else first_row(dataset)
            columns = list(dataset.column_names or []) if is_stored(dataset) else list(row or {})
            if training and row is None and not is_stored(dataset):
                raise ValueError("train_dataset is a stream without rows. Give one that has some.")
            if "prompt" not in columns and not self._owns_prompts:
                raise ValueError(_no_prompt(name, columns))
            gold = self.gold.add(name, columns, training=training)
            if is_stored(dataset):
                self._check_stored(name, dataset, [c for c in ("prompt", gold) if c is not None and c in columns])
            elif row is not None:
                self.check_rows(name, [row])
            if training and isinstance(dataset, Dataset):
                check_size(len(dataset), self._args)

    def check_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Check rows of the set `name` as they come. Raises `ValueError` for one that cannot be trained on."""
        for row in rows:
            self._check_row(row, f"A row of {name}")

    def _check_row(self, row: Any, where: str) -> str | None:
        if "prompt" in row or not self._owns_prompts:
            check_prompt(row.get("prompt"), placement=self._placement, where=where)
        return self.gold.of(row, where=where)

    def _check_stored(self, name: str, dataset: Dataset, columns: list[str]) -> None:
        """Check every row, reading `columns` alone: no image is decoded."""
        if not columns:
            return
        plain = dataset.select_columns(columns).with_format(None)
        rows = tqdm(plain, desc=f"Checking {name}", delay=1, leave=False, disable=self._args.disable_tqdm)
        blank = [i for i, row in enumerate(rows) if self._check_row(row, f"{name}, row {i}") is None]
        if self.gold.needed_by is None or not blank:
            return
        if len(blank) == len(dataset):
            raise ValueError(
                f"context={self.gold.needed_by!r} needs gold solutions, but the column {columns[-1]!r} of {name} is "
                f"blank or None in all {len(blank)} rows. Set privileged_context_column to another column, use "
                "context='peer', or pass a context_builder."
            )
        warnings.warn(
            f"{len(blank)} of {len(dataset)} rows of {name} have no gold solution in {columns[-1]!r} (the first is row "
            f"{blank[0]}). context={self.gold.needed_by!r} cannot show one to the teacher there; dataset.filter "
            "removes such rows.",
            stacklevel=2,
        )


def check_data(
    args: SelfDistillConfig,
    train_dataset: Any,
    eval_dataset: Any,
    builder: Callable[..., Any] | None,
    environment: Any,
    *,
    asks_teacher: bool = True,
) -> DataChecks:
    """Check what a trainer is given. Raises `ValueError` as `DataChecks` does."""
    checks = DataChecks(args, builder, environment, asks_teacher=asks_teacher)
    if train_dataset is None and environment is not None and checks.gold.needed_by is not None:
        raise ValueError(
            f"context={args.context!r} shows the teacher a gold solution, but without a train_dataset the environment "
            "makes the prompts, and there is no solution beside them. Use context='feedback', what the environment "
            "said of the rollout; context='memory', lessons of earlier batches; context='peer', a correct rollout of "
            "the same prompt; or pass a context_builder that makes the context from the rollout."
        )
    checks.add(train_dataset, eval_dataset)
    return checks


def check_size(rows: int, args: SelfDistillConfig) -> None:
    """Raise `ValueError` when `rows` do not fill one generation batch: TRL drops incomplete ones and trains nothing."""
    needed = args.generation_batch_size // args.num_generations  # type: ignore[operator]  # resolved by GRPOConfig
    if rows < needed:
        raise ValueError(
            f"train_dataset has {rows} rows, but one generation batch needs generation_batch_size / num_generations = "
            f"{args.generation_batch_size} / {args.num_generations} = {needed} of them, and TRL drops incomplete "
            "batches: nothing would be trained. Add rows, repeat them (dataset.repeat), or lower generation_batch_size "
            "(or per_device_train_batch_size, steps_per_generation, gradient_accumulation_steps, which make it up)."
        )


def is_stored(dataset: Any) -> bool:
    """Whether all rows are there to be read: no stream, and no transform that makes them when they are asked for."""
    return isinstance(dataset, Dataset) and dataset.format["type"] != "custom"


def first_row(dataset: Dataset | IterableDataset) -> dict[str, Any] | None:
    """The first row, `None` of an empty dataset. A stream is opened anew for it and not consumed."""
    return next(iter(dataset), None)


def first_prompts(*given: Any) -> list[Any]:
    """The first prompt of each training or evaluation set that has prompts."""
    rows = [first_row(dataset) for dataset in named_datasets(*given).values()]
    return [row["prompt"] for row in rows if row and "prompt" in row]


def named_datasets(train_dataset: Any = None, eval_dataset: Any = None) -> dict[str, Any]:
    """The datasets by name. Those given may be missing, names, or (for evaluation) dictionaries of datasets."""
    several = eval_dataset if isinstance(eval_dataset, dict) else {}
    given = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
    given |= {f"eval_dataset[{name!r}]": dataset for name, dataset in several.items()}
    return {name: dataset for name, dataset in given.items() if isinstance(dataset, Dataset | IterableDataset)}


def _no_prompt(name: str, columns: list[str]) -> str:
    like = next((column for column in _LIKE_PROMPTS if column in columns), "problem")
    return (
        f"{name} has no column 'prompt', which the trainer samples from; it has {sorted(columns)}. Rename the column "
        f'that holds it: {name}.rename_column("{like}", "prompt").'
    )
