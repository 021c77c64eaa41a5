"""The command `eval` with its arguments read: load, go on where it stopped, sample, report."""

import argparse
import re
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from trl import DatasetMixtureConfig

from trl_selfdistill.cli.arguments import RunArguments
from trl_selfdistill.cli.data import load_splits, map_columns, split_of
from trl_selfdistill.cli.errors import INTERRUPTED, UserError, as_user_errors
from trl_selfdistill.cli.eval_report import Report, print_report, write_report
from trl_selfdistill.cli.eval_store import SampleStore, digest
from trl_selfdistill.cli.evaluation import Scene, metrics_of, run_chunk, todo
from trl_selfdistill.cli.judging import Judge
from trl_selfdistill.cli.policies import adapter_of, load_policy, load_tokenizer, thinking_modes, weights_mark
from trl_selfdistill.cli.rewards import load_reward
from trl_selfdistill.cli.sampling import Sampling, TransformersGenerator
from trl_selfdistill.cli.train import see_working_directory

DATA = ("dataset_name", "dataset_config", "prompt_column", "solution_column", "system_prompt", "row_function")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and report. The exit status."""
    see_working_directory()
    with as_user_errors():
        sampling = sampling_of(arguments)
        rows, split = load_rows(arguments)
        judge = judge_of(arguments)
    tokenizer = tokenizer_of(arguments)
    modes, notes = thinking_modes(tokenizer, [row["prompt"] for row in rows], arguments.thinking)
    settings = settings_of(arguments, sampling, rows, split, sorted(modes))
    store = SampleStore(folder_of(arguments, settings), settings)
    start = time.perf_counter()
    left = todo(len(rows), sampling, modes, store)
    if left:
        scene = scene_of(arguments, rows, tokenizer, judge, sampling)
        try:
            for mode, chunk in track(left, "sampling", console=Console(stderr=True), transient=True):
                store.add(run_chunk(scene, chunk, mode, modes[mode]))
        except KeyboardInterrupt:
            done = len(store.done)
            Console(stderr=True).print(f"Stopped with {done} samples in {store.folder}. The same command goes on.")
            return INTERRUPTED
    metrics = {mode: metrics_of([r for r in store.done.values() if r["thinking"] == mode], sampling) for mode in modes}
    report = Report(settings, metrics, list(store.done.values()), notes, time.perf_counter() - start)
    write_report(report, store.folder / "results.json")
    print_report(report, store.folder)
    return 0


def sampling_of(arguments: argparse.Namespace) -> Sampling:
    """Raises `ValueError` for numbers that cannot be."""
    default = 1024 if getattr(arguments, "use_vllm", False) else 32
    return Sampling(
        n=arguments.num_generations,
        max_tokens=arguments.max_completion_length,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        seed=arguments.seed,
        batch_size=arguments.per_device_eval_batch_size or default,
    )


def load_rows(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """(problems, the split that they are of). Raises `UserError` for data that is not there, or without rows."""
    given = RunArguments(**{name: getattr(arguments, name) for name in DATA})
    splits = load_splits(given, DatasetMixtureConfig(), seed=0)
    split = arguments.dataset_test_split or ("test" if "test" in splits else next(iter(splits)))
    if arguments.dataset_test_split is None and split != "test" and len(splits) > 1:
        raise UserError(f"the data has the splits {', '.join(splits)}. Choose one: --split {split}.")
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit {arguments.limit} must be at least 1.")
    data = split_of(splits, split, option="dataset_test_split")
    if arguments.limit is not None:
        data = data.select(range(min(arguments.limit, len(data))))
    rows = list(map_columns(data, given))
    if not rows:
        raise UserError(f"the split {split!r} has no rows.")
    return rows, split


def judge_of(arguments: argparse.Namespace) -> Judge:
    functions = [load_reward(name, arguments.max_completion_length) for name in arguments.reward_funcs]
    return Judge(functions, arguments.correctness_reward, arguments.correctness_threshold)


def tokenizer_of(arguments: argparse.Namespace) -> Any:
    return load_tokenizer(
        arguments.model_name_or_path,
        revision=arguments.model_revision,
        trust_remote_code=arguments.trust_remote_code,
    )


def model_of(arguments: argparse.Namespace) -> Any:
    return load_policy(
        arguments.model_name_or_path,
        revision=arguments.model_revision,
        dtype=arguments.dtype,
        attn_implementation=arguments.attn_implementation,
        trust_remote_code=arguments.trust_remote_code,
    )


def scene_of(
    arguments: argparse.Namespace, rows: list[dict[str, Any]], tokenizer: Any, judge: Judge, sampling: Sampling
) -> Scene:
    """The model is loaded here, where something is left to sample."""
    if not arguments.use_vllm:
        generator = TransformersGenerator(model_of(arguments), tokenizer, sampling)
        return Scene(rows, tokenizer, generator, judge, sampling, generator.end_ids)
    from trl_selfdistill.cli.sampling_vllm import make_vllm_generator

    name, revision = arguments.model_name_or_path, arguments.model_revision
    if adapter_of(name, revision):
        raise UserError("--use_vllm takes whole models: merge the adapter into its base, or leave --use_vllm out.")
    generator = make_vllm_generator(
        name,
        tokenizer,
        sampling,
        revision=revision,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
    )
    return Scene(rows, tokenizer, generator, judge, sampling, generator.end_ids)


def settings_of(
    arguments: argparse.Namespace, sampling: Sampling, rows: list[dict[str, Any]], split: str, modes: list[str]
) -> dict[str, Any]:
    """All that decides the samples."""
    names = ("reward_funcs", "correctness_reward", "correctness_threshold", "dtype")
    return {
        "model": arguments.model_name_or_path,
        "revision": arguments.model_revision,
        "weights": weights_mark(arguments.model_name_or_path),
        **{name.removesuffix("_name"): getattr(arguments, name) for name in DATA},
        "split": split,
        "problems": len(rows),
        "rows": digest(rows),
        **{name: getattr(arguments, name) for name in names},
        "thinking": modes,
        "use_vllm": getattr(arguments, "use_vllm", False),
        **sampling.as_dict(),
    }


def folder_of(arguments: argparse.Namespace, settings: dict[str, Any], *, under: str = "eval") -> Path:
    """`--output_dir`, or a folder whose name tells the model and, as a hash, the settings."""
    if arguments.output_dir is not None:
        return Path(arguments.output_dir)
    model = re.sub(r"\W+", "-", Path(arguments.model_name_or_path).name)
    return Path(under) / f"{model}-{digest(settings)[:8]}"
