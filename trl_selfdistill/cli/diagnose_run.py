"""The command `diagnose` with its arguments read: rollouts, teacher prompts, scores, teacher samples, report."""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

import trl_selfdistill
from trl_selfdistill.cli.commands import ALGORITHMS
from trl_selfdistill.cli.diagnose_contexts import choose
from trl_selfdistill.cli.diagnose_facts import Diagnosis, diagnose_context
from trl_selfdistill.cli.diagnose_prompts import collator_of, golds_of, rollouts_of, teacher_prompts
from trl_selfdistill.cli.diagnose_report import check_matplotlib, publish
from trl_selfdistill.cli.diagnose_scores import score
from trl_selfdistill.cli.errors import UserError, as_user_errors
from trl_selfdistill.cli.eval_metrics import Sample
from trl_selfdistill.cli.eval_run import (
    folder_of,
    judge_of,
    load_rows,
    model_of,
    sampling_of,
    settings_of,
    tokenizer_of,
)
from trl_selfdistill.cli.evaluation import Drawn, Row, Scene, draw
from trl_selfdistill.cli.policies import knows_thinking, prompt_tokens
from trl_selfdistill.cli.sampling import TransformersGenerator, plan_chunks
from trl_selfdistill.cli.train import see_working_directory


def run(arguments: argparse.Namespace) -> int:
    """Diagnose and report. The exit status."""
    see_working_directory()
    with as_user_errors():
        check_matplotlib()
        sampling, (rows, split), judge = sampling_of(arguments), load_rows(arguments), judge_of(arguments)
    if arguments.teacher_samples < 1:
        raise UserError(f"--teacher_samples {arguments.teacher_samples} must be at least 1.")
    tokenizer, start = tokenizer_of(arguments), time.perf_counter()
    trainer_class = getattr(trl_selfdistill, ALGORITHMS[arguments.algorithm])
    with as_user_errors():
        config = config_of(arguments, trainer_class)
    model = model_of(arguments)
    generator = TransformersGenerator(model, tokenizer, sampling)
    scene = Scene(rows, tokenizer, generator, judge, sampling, generator.end_ids)
    settings = settings_of(arguments, sampling, rows, split, []) | {"algorithm": arguments.algorithm}
    with as_user_errors():
        diagnosis = diagnose(scene, model, trainer_class, config, settings, arguments.teacher_samples)
    publish(diagnosis, folder_of(arguments, settings, under="diagnose"), time.perf_counter() - start)
    return 0


def config_of(arguments: argparse.Namespace, trainer_class: Any) -> Any:
    """The algorithm's configuration, for what makes the teacher's prompts. Raises `ValueError` as it does."""
    n = arguments.num_generations
    return trainer_class.config_class(
        output_dir="diagnose",
        num_generations=n,
        per_device_train_batch_size=n,
        teacher_template=arguments.teacher_template,
        context_placement=arguments.context_placement,
        max_context_tokens=arguments.max_context_tokens,
        bf16=False,
        use_cpu=not torch.accelerator.is_available(),
        report_to="none",
    )


def diagnose(
    scene: Scene, model: Any, trainer_class: Any, config: Any, settings: Mapping[str, Any], samples: int
) -> Diagnosis:
    """Rollouts of the student; then, for each context, what the teacher says of them and how it answers itself."""
    chat = dict(config.chat_template_kwargs or {})
    rows = [row for row in scene.rows for _ in range(scene.sampling.n)]
    prompts = [prompt_tokens(scene.tokenizer, row["prompt"], chat) for row in rows]
    drawn = draw_all(scene, rows, prompts, "rollouts")
    rollouts = rollouts_of(scene, rows, drawn)
    thinks = knows_thinking(scene.tokenizer, scene.rows[0]["prompt"])
    names, notes = choose(golds_of(scene.rows), thinks=thinks)
    collator = collator_of(trainer_class, config, scene.tokenizer, [row["prompt"] for row in scene.rows], model)
    lengths = [len(ids) for ids in drawn.ids]
    teachers = teacher_prompts(collator, rollouts, prompts, lengths, names, chat)
    notes += [f"No rollout has the context {name!r}." for name in names if name not in teachers]
    tables = score(
        model,
        scene.tokenizer,
        prompts,
        teachers,
        drawn.ids,
        temperature=scene.sampling.temperature or 1.0,
        batch_size=max(1, scene.sampling.batch_size // 4),
    )
    student = samples_of(scene, drawn, [row // scene.sampling.n for row in range(len(rows))])
    correct = torch.tensor([rollout.correct for rollout in rollouts])
    found = {}
    for name in tables:
        answers = student if name == "none" else teacher_answers(scene, teachers[name], name, samples)
        taught = [prompt is not None for prompt in teachers[name]]
        found[name] = diagnose_context(tables[name], answers, student, correct, taught, scene.sampling)
    return Diagnosis(settings, student, found, notes)


def draw_all(scene: Scene, rows: Sequence[Row], prompts: Sequence[list[int]], name: str) -> Drawn:
    """A completion of each prompt, in chunks of `batch_size`, in order."""
    parts = []
    one = replace(scene.sampling, n=1)
    chunks = plan_chunks(len(prompts), one)
    for chunk in track(chunks, name, console=Console(stderr=True), transient=True):
        chosen = [problem for problem, _ in chunk.rows]
        picked = [prompts[row] for row in chosen]
        parts.append(draw(scene, [rows[row] for row in chosen], picked, chunk.seed(one, f"diagnose/{name}")))
    return Drawn(
        [ids for part in parts for ids in part.ids],
        [text for part in parts for text in part.texts],
        [completion for part in parts for completion in part.completions],
        torch.cat([part.rewards for part in parts]),
        [right for part in parts for right in part.correct],
    )


def samples_of(scene: Scene, drawn: Drawn, problems: Sequence[int]) -> list[Sample]:
    return [Sample(problem, **counts) for problem, counts in zip(problems, drawn.counts(scene), strict=True)]


def teacher_answers(scene: Scene, prompts: Sequence[list[int] | None], name: str, samples: int) -> list[Sample]:
    """`samples` completions of the teacher for each problem, from the prompt of its first rollout that has one."""
    n = scene.sampling.n
    firsts = {
        problem: next((ids for ids in prompts[n * problem : n * (problem + 1)] if ids is not None), None)
        for problem in range(len(scene.rows))
    }
    problems = [problem for problem, ids in firsts.items() if ids is not None for _ in range(samples)]
    shown = [ids for problem in problems if (ids := firsts[problem]) is not None]
    drawn = draw_all(scene, [scene.rows[problem] for problem in problems], shown, name)
    return samples_of(scene, drawn, problems)
