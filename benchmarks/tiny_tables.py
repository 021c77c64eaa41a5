"""The figures of the runs of the tiny policy, as they stand in the documentation."""

import json
from collections.abc import Callable
from statistics import fmean
from typing import Any

import tiny_health
from tiny_numbers import RESULTS, Results, after_warmup, bullet, first, last, paragraph, percent, together

POLICY = "A transformer of 0.4 million parameters that knows one-digit sums but seldom says them"


def blocks() -> dict[str, dict[str, str]]:
    """Page -> mark -> what stands there."""
    results = json.loads(RESULTS.read_text())
    made = {f"docs/{page}.md": {"tiny runs": text(results)} for page, text in TEXTS.items()}
    return made | {"docs/health.md": tiny_health.blocks(results)}


def learned(results: Results, name: str) -> str:
    """One run in a sentence: from where to where, in how many steps."""
    run = results["runs"][name]
    settings, reward = run["run"]["settings"], run["run"]["reward"]
    return (
        f"{POLICY} (run `{name}` of `benchmarks/tiny_runs.py`): {percent(run['before'])} to {percent(run['after'])} in "
        f"{settings['max_steps']} steps of {settings['per_device_train_batch_size']} rollouts, "
        f"{'' if reward else 'without a reward, '}with the defaults and a learning rate of "
        f"{settings['learning_rate']:.0e}; {run['training_cpu_seconds']:.0f} CPU-seconds of training. One seed."
    ).replace("e-0", "e-")


def plain(name: str) -> Callable[[Results], str]:
    return lambda results: bullet(learned(results, name))


def poweropd(results: Results) -> str:
    hint = f"Its teacher with the hint is right {percent(results['accuracy_with_hint'], 1)} of the time."
    return bullet(learned(results, "poweropd"), hint)


def opsa(results: Results) -> str:
    steps = results["runs"]["opsa"]["steps"]
    entropies, rewards = steps["self_distill/student_entropy"], steps["reward"]
    others = [percent(results["runs"][name]["after"]) for name in ("rlsd", "poweropd")]
    return bullet(
        learned(results, "opsa"),
        f"From the first ten steps to the last ten, the policy's mean entropy goes from {first(entropies, 10):.2f} to",
        f"{last(entropies, 10):.2f} nats, the mean reward from {first(rewards, 10):.2f} to {last(rewards, 10):.2f}.",
        f"With a teacher, [RLSD](rlsd.md) reaches {others[0]} there and [PowerOPD](poweropd.md) {others[1]}.",
    )


def antisd(results: Results) -> str:
    """With the gate and without it."""
    gated, loose = (results["runs"][name] for name in ("antisd", "antisd_collapse"))
    taught = after_warmup(gated["steps"])
    rewards = loose["steps"]["reward"]
    spread = loose["steps"]["self_distill/teacher_entropy"]
    tells = [
        f"the mean reward went from {first(rewards):.2f} to {last(rewards):.2f}",
        f"the teacher's mean entropy from {first(spread):.2f} to {last(spread):.2f} nats",
    ]
    return "\n".join(
        [
            bullet(
                f"With the gate: {accuracies(gated)}. It was open in {sum(taught):.0f} of {len(taught)} batches "
                "after the warm-up."
            ),
            bullet(
                "With the gate disabled (`antisd_close_ratio=0`) and $\\lambda$ ten times larger:",
                f"{accuracies(loose)}. Between the first five steps and the last five, {together(tells)}.",
            ),
        ]
    )


def accuracies(run: dict[str, Any]) -> str:
    return f"{percent(run['before'], 1)} to {percent(run['after'], 1)}"


def opsd(results: Results) -> str:
    """The three clips, and how much the entry clip cuts."""
    runs = results["runs"]
    clips = {
        "none": "opsd_unclipped",
        "token clip 0.05 (default)": "opsd",
        "entry clip 0.05 (published)": "opsd_entry_clip",
    }
    alone, hint = percent(runs["opsd"]["before"]), percent(results["accuracy_with_hint"], 1)
    rows = [f"| {clip} | {percent(runs[name]['after'], 1)} |" for clip, name in clips.items()]
    cut = runs["opsd_entry_clip"]["steps"]["opsd/clipped_entry_mass"]
    return "\n".join(
        [
            paragraph(
                f"Measured on the tiny policy ({alone} right without the hint, {hint} with it; LoRA, "
                f"{runs['opsd']['run']['settings']['max_steps']} steps, no reward, one seed; the runs `opsd`, "
                "`opsd_unclipped` and `opsd_entry_clip` of `benchmarks/tiny_runs.py`):"
            ),
            "",
            "| clip | accuracy after |",
            "|---|---|",
            *rows,
            "",
            paragraph(
                "`opsd/clipped_entry_mass` shows it: the share of the teacher's probability on clipped entries was "
                f"between {percent(min(cut))} and {percent(max(cut))}, in the mean {percent(fmean(cut))}."
            ),
        ]
    )


TEXTS = {
    "rlrt": plain("rlrt"),
    "rlsd": plain("rlsd"),
    "rlcsd": plain("rlcsd"),
    "sdpo": plain("sdpo"),
    "poweropd": poweropd,
    "opsa": opsa,
    "antisd": antisd,
    "opsd": opsd,
}
