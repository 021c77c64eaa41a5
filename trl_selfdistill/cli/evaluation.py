"""Sample, judge and count: the evaluation of a model in memory. The command and the examples use it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trl_selfdistill.cli.eval_metrics import Interval, Sample, powers_of_two, summarise
from trl_selfdistill.cli.eval_store import Record, SampleStore
from trl_selfdistill.cli.judging import Judge, Reward, as_completion
from trl_selfdistill.cli.policies import Modes, prompt_tokens
from trl_selfdistill.cli.sampling import Chunk, Generator, Sampling, TransformersGenerator, plan_chunks
from trl_selfdistill.record.wording import epistemic_substrings, epistemic_words
from trl_selfdistill.trainer.rollouts import is_finished

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Scene:
    """What stays the same during an evaluation."""

    rows: Sequence[Row]
    tokenizer: Any
    generator: Generator
    judge: Judge
    sampling: Sampling
    end_ids: set[int]


def evaluate(
    model: Any,
    tokenizer: Any,
    rows: Iterable[Row],
    rewards: Reward | Sequence[Reward],
    sampling: Sampling,
    *,
    chat: Mapping[str, Any] | None = None,
) -> dict[str, Interval]:
    """The metrics of `eval_metrics.summarise` for a model that is loaded, by name: `"pass@1"`, `"length"`, ...

    Args:
        model: a causal language model; its mode and torch's random state are left as they were.
        tokenizer: its tokenizer.
        rows: with `prompt` (text or a conversation), and the columns that the rewards read.
        rewards: one function or several, of which the first tells correctness.
        sampling: how many completions, how long, and the seed.
        chat: arguments of the chat template.
    """
    generator = TransformersGenerator(model, tokenizer, sampling)
    functions = list(rewards) if isinstance(rewards, Sequence) else [rewards]
    scene = Scene(list(rows), tokenizer, generator, Judge(functions), sampling, generator.end_ids)
    chunks = plan_chunks(len(scene.rows), sampling)
    records = [record for chunk in chunks for record in run_chunk(scene, chunk, "default", chat or {})]
    return metrics_of(records, sampling)


def todo(problems: int, sampling: Sampling, modes: Modes, store: SampleStore) -> list[tuple[str, Chunk]]:
    """The chunks of all modes of which a sample is missing."""
    chunks = plan_chunks(problems, sampling)
    return [
        (mode, chunk) for mode in modes for chunk in chunks if any((mode, *row) not in store.done for row in chunk.rows)
    ]


@dataclass(frozen=True)
class Drawn:
    """Completions and what the rewards said of them."""

    ids: list[list[int]]
    texts: list[str]
    completions: list[Any]
    """In the form that rewards get them in."""
    rewards: Tensor
    """(completions, functions), NaN where not assessed."""
    correct: list[bool | None]

    def counts(self, scene: Scene) -> list[dict[str, Any]]:
        """What is counted of each completion."""
        return [
            {
                "correct": right,
                "tokens": len(ids),
                "truncated": not is_finished(ids, scene.end_ids, scene.sampling.max_tokens),
                "epistemic_substrings": epistemic_substrings(text),
                "epistemic_words": epistemic_words(text),
            }
            for ids, text, right in zip(self.ids, self.texts, self.correct, strict=True)
        ]


def draw(scene: Scene, rows: Sequence[Row], prompts: Sequence[list[int]], seed: int) -> Drawn:
    """A completion of each of `prompts`, judged by its row."""
    ids = scene.generator(prompts, seed)
    texts = scene.tokenizer.batch_decode(ids, skip_special_tokens=True)
    completions = [as_completion(row["prompt"], text) for row, text in zip(rows, texts, strict=True)]
    rewards = scene.judge.values(rows, completions, ids)
    return Drawn(ids, texts, completions, rewards, scene.judge.judge(rewards))


def run_chunk(scene: Scene, chunk: Chunk, mode: str, chat: Mapping[str, Any]) -> list[Record]:
    """Draw and judge the completions of a chunk."""
    rows = [scene.rows[problem] for problem, _ in chunk.rows]
    prompts = [prompt_tokens(scene.tokenizer, row["prompt"], chat) for row in rows]
    drawn = draw(scene, rows, prompts, chunk.seed(scene.sampling, mode))
    return [
        {"thinking": mode, "problem": problem, "sample": sample, **counts, "text": text}
        for (problem, sample), counts, text in zip(chunk.rows, drawn.counts(scene), drawn.texts, strict=True)
    ]


def sample_of(record: Record) -> Sample:
    names = ("problem", "correct", "tokens", "truncated", "epistemic_substrings", "epistemic_words")
    return Sample(**{name: record[name] for name in names})


def metrics_of(records: Iterable[Record], sampling: Sampling) -> dict[str, Interval]:
    """The metrics of the samples of one mode, for k = 1, 2, 4, ..., n."""
    return summarise([sample_of(record) for record in records], powers_of_two(sampling.n), seed=sampling.seed)
