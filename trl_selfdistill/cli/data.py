"""The datasets of a run: files, folders, names on the Hub and mixtures, with the columns that the trainer reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from trl import DatasetMixtureConfig, get_dataset

from trl_selfdistill.cli.arguments import RunArguments
from trl_selfdistill.cli.errors import UserError
from trl_selfdistill.context.builders import resolve_function
from trl_selfdistill.context.inputs import did_you_mean

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""The reader of `datasets` by the ending of a file, which may be followed by that of a compression."""


def load_data(run: RunArguments, mixture: DatasetMixtureConfig, *, evaluates: bool, seed: int) -> tuple[Any, Any]:
    """(training set, evaluation set or `None`) with their columns mapped.

    Raises `UserError` for data that is not there, and for a split or a column that it does not have.
    """
    splits = load_splits(run, mixture, seed=seed)
    train = split_of(splits, run.dataset_train_split, option="dataset_train_split")
    evaluation = split_of(splits, run.dataset_test_split, option="dataset_test_split") if evaluates else None
    return map_columns(train, run), None if evaluation is None else map_columns(evaluation, run)


def load_splits(run: RunArguments, mixture: DatasetMixtureConfig, *, seed: int) -> Any:
    """All splits by name."""
    if bool(mixture.datasets) == bool(run.dataset_name):
        raise UserError("give the data either as --dataset_name or as `datasets:` in the --config file.")
    if mixture.datasets:
        for entry in mixture.datasets:
            found = source(entry.path)
            entry.path, entry.data_files = found["path"], found.get("data_files", entry.data_files)
        return get_dataset(mixture)
    if mixture.streaming:
        raise UserError("streaming is for `datasets:`. Use dataset_streaming with dataset_name.")
    found = source(str(run.dataset_name))
    splits: Any = load_dataset(**found, name=run.dataset_config, streaming=run.dataset_streaming)
    if mixture.test_split_size is None:
        return splits
    train = split_of(splits, run.dataset_train_split, option="dataset_train_split")
    if not isinstance(train, Dataset):
        raise UserError("test_split_size cannot split a stream. Leave out dataset_streaming.")
    parts = train.train_test_split(test_size=mixture.test_split_size, seed=seed)
    return {run.dataset_train_split: parts["train"], run.dataset_test_split: parts["test"]}


def source(name: str) -> dict[str, Any]:
    """The arguments of `load_dataset` for a file, a folder or a name on the Hub."""
    reader = next((READERS[ending] for ending in reversed(Path(name).suffixes) if ending in READERS), None)
    if reader is None or Path(name).is_dir():
        return {"path": name}
    if not Path(name).is_file():
        raise UserError(f"there is no file {name!r}.")
    return {"path": reader, "data_files": name}


def split_of(splits: Mapping[str, Any], name: str, *, option: str) -> Any:
    if name not in splits:
        hint = " --test_split_size 0.1 makes one of the training data." if option == "dataset_test_split" else ""
        raise UserError(f"the data has no split {name!r}. It has: {', '.join(splits)}. Set --{option}.{hint}")
    return splits[name]


def column_names(dataset: Dataset | IterableDataset) -> list[str]:
    return list(dataset.column_names or next(iter(dataset), {}))


def map_columns(dataset: Any, run: RunArguments) -> Any:
    """`dataset` with `prompt`, and `solution` where it is asked for. Other columns stay: a reward may read them."""
    maker = row_maker(run, column_names(dataset))
    if maker is not None:
        # Never from the cache: it does not see that a function's module has changed.
        dataset = dataset.map(maker, **({"load_from_cache_file": False} if isinstance(dataset, Dataset) else {}))
    columns = column_names(dataset)
    if columns and "prompt" not in columns:
        raise UserError(
            f"the data has no column 'prompt'. It has: {', '.join(columns)}. Name the one with the problem's text: "
            "--prompt_column COLUMN."
        )
    return dataset


def row_maker(run: RunArguments, columns: list[str]) -> Any:
    """The function that adds columns to a row; `None` where nothing is to be done."""
    simple = {"prompt_column": run.prompt_column, "solution_column": run.solution_column}
    if run.row_function is not None:
        given = [name for name, value in {**simple, "system_prompt": run.system_prompt}.items() if value is not None]
        if given:
            raise UserError(
                f"--row_function makes the whole row: leave out --{given[0]}, or do without --row_function."
            )
        return resolve_function(run.row_function, field="row_function", argument="the row")
    for option, column in simple.items():
        if column is not None and column not in columns:
            near = did_you_mean(column, columns)
            raise UserError(f"--{option} {column!r}: the data has no such column.{near} It has: {', '.join(columns)}.")
    prompt = run.prompt_column or ("prompt" if run.system_prompt is not None and "prompt" in columns else None)
    if prompt is None and run.solution_column is None:
        return None

    def add_columns(row: dict[str, Any]) -> dict[str, Any]:
        new = {} if prompt is None else {"prompt": conversation(row[prompt], run.system_prompt)}
        if run.solution_column is not None:
            new["solution"] = solution(row[run.solution_column])
        return new

    return add_columns


def conversation(prompt: Any, system: str | None) -> Any:
    """A text as one user message, or the conversation that it is already, with a system message in front.

    What is neither is left alone: the trainer says which row holds it.
    """
    if not isinstance(prompt, str | list):
        return prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if system is None:
        return messages
    if messages and messages[0].get("role") == "system":
        raise UserError("the prompts have a system message already. Leave out --system_prompt.")
    return [{"role": "system", "content": system}, *messages]


def solution(value: Any) -> Any:
    """A number as text; anything else as it is."""
    return str(value) if isinstance(value, int | float) else value
