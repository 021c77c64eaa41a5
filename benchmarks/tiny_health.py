"""The figures of docs/health.md: what the runs of the tiny policy measured, rule by rule."""

from typing import Any

from tiny_numbers import (
    Results,
    after_warmup,
    at_most,
    drifts,
    first,
    last,
    longest,
    paragraph,
    percent,
    together,
    trailing,
)

HEALTHY = ("rlrt", "rlsd", "rlcsd", "sdpo", "poweropd", "antisd", "opsd", "opsd_unclipped")
"""The runs that learn the task."""
COLLAPSE = "antisd_collapse"


def blocks(results: Results) -> dict[str, str]:
    """Mark -> what stands there."""
    runs = results["runs"]
    made = {"runs": table(runs)}
    return made | {rule: paragraph(f"Measured: {text(runs)}") for rule, text in TEXTS.items()}


def table(runs: dict[str, Any]) -> str:
    """Every run, and what was raised in it."""
    lines = ["| run | accuracy | steps | raised, with its first step |", "|---|---|---|---|"]
    for name, run in runs.items():
        firsts = dict(reversed(run["health"]))
        raised = ", ".join(f"`{rule}` ({firsts[rule]})" for rule in sorted(firsts)) or "nothing"
        accuracy = f"{percent(run['before'])} to {percent(run['after'])}"
        lines.append(f"| `{name}` | {accuracy} | {run['run']['settings']['max_steps']} | {raised} |")
    return "\n".join(lines)


def values(runs: dict[str, Any], metric: str, *names: str) -> dict[str, list[float]]:
    """The logged values of those runs (of all where none is named) that have the metric at every step."""
    found = {name: runs[name]["steps"].get(metric) for name in names or runs}
    return {name: steps for name, steps in found.items() if steps and None not in steps}


def each(numbers: dict[str, float], unit: str) -> str:
    """`rlrt` 0.10, `antisd` 0.08 and ..., the smallest first."""
    return together(f"`{name}` {number:{unit}}" for name, number in sorted(numbers.items(), key=lambda item: item[1]))


def no_teacher(runs: dict[str, Any]) -> str:
    lowest = {name: min(steps) for name, steps in values(runs, "self_distill/has_teacher").items()}
    some = together(f"{percent(share)} in `{name}`" for name, share in lowest.items() if share < 1)
    return f"the lowest share of a step was {some}, and 100 % in the other runs that ask a teacher."


def first_tokens(runs: dict[str, Any]) -> str:
    starts = values(runs, "self_distill/log_ratio_start", *HEALTHY)
    begin = [first(steps) for steps in starts.values()]
    end = [last(steps) for steps in starts.values()]
    return (
        "in the tiny policy, whose first token is the answer itself, mean |u| of the first token is "
        f"{min(begin):.1f} to {max(begin):.1f} nats in the first steps of the runs that learn, and {min(end):.1f} to "
        f"{max(end):.1f} in the last."
    )


def leakage(runs: dict[str, Any]) -> str:
    most = max(max(steps) for steps in values(runs, "completions/mentions_solution").values())
    return f"{at_most(most)} in all runs of the tiny policy, which writes digits alone."


def epistemic(runs: dict[str, Any]) -> str:
    most = max(max(steps) for steps in values(runs, "completions/epistemic_words").values())
    return f"{'at most ' * (most > 0)}{most:.2g} words in all runs of the tiny policy, which writes digits alone."


def entropy_low(runs: dict[str, Any]) -> str:
    entropies = values(runs, "self_distill/student_entropy")
    lowest = {name: min(drifts(steps)) for name, steps in entropies.items()}
    learn = {name: share for name, share in lowest.items() if name in HEALTHY}
    fail = {name: share for name, share in lowest.items() if name not in HEALTHY}
    return (
        f"the lowest share of the first steps' entropy in the runs that learn: {each(learn, '.2f')}. In those that do "
        f"not: {each(fail, '.3f')}."
    )


def entropy_high(runs: dict[str, Any]) -> str:
    highest = {name: max(drifts(v)) for name, v in values(runs, "self_distill/student_entropy").items()}
    learn = max(share for name, share in highest.items() if name in HEALTHY)
    most = max(highest, key=lambda name: highest[name])
    return (
        f"at most {learn:.2f} times the first steps in the runs that learn, at most {highest[most]:.2f} times in all "
        f"(`{most}`)."
    )


def length_tail(runs: dict[str, Any]) -> str:
    tails = values(runs, "completions/length_p95").values()
    longest_tail, growth = max(max(steps) for steps in tails), max(max(drifts(steps)) for steps in tails)
    return (
        f"the tail of the tiny policy's answers was at most {longest_tail:.0f} tokens, at most {growth:.2f} times the "
        "first steps."
    )


def truncated(runs: dict[str, Any]) -> str:
    shares = values(runs, "completions/clipped_ratio")
    learn = max(max(steps) for name, steps in shares.items() if name in HEALTHY)
    others = max(max(steps) for name, steps in shares.items() if name not in HEALTHY)
    return f"at most {percent(learn, 1)} of a step in the runs that learn, at most {percent(others, 1)} in the others."


def no_spread(runs: dict[str, Any]) -> str:
    alike = {name: longest(v == 1 for v in steps) for name, steps in values(runs, "frac_reward_zero_std").items()}
    judged = {name: count for name, count in alike.items() if not name.startswith("opsd")}
    learn = max(count for name, count in judged.items() if name in HEALTHY)
    return (
        f"at most {learn} step{'s' * (learn != 1)} in a row in the runs that learn (16 groups a step), "
        f"{judged[COLLAPSE]} in `{COLLAPSE}`."
    )


def gate_shut(runs: dict[str, Any]) -> str:
    shut = longest(gate == 0 for gate in after_warmup(runs["antisd"]["steps"]))
    return f"the longest row of shut steps after the warm-up was {shut} in `antisd`."


def open_entropies(steps: dict[str, list[Any]]) -> list[float]:
    """The teacher's median entropy as a share of the warm-up's, where the gate is open."""
    logged = zip(steps["antisd/gate"], steps["antisd/entropy"], steps["antisd/warm_entropy"], strict=True)
    return [entropy / warm for gate, entropy, warm in logged if warm is not None and gate == 1]


def gate_open(runs: dict[str, Any]) -> str:
    healthy, collapse = (open_entropies(runs[name]["steps"]) for name in ("antisd", COLLAPSE))
    return (
        f"with the gate open, the entropy was between {min(healthy):.2f} and {max(healthy):.2f} times the warm-up's in "
        f"`antisd`, and between {min(collapse):.2f} and {max(collapse):.2f} times in `{COLLAPSE}`."
    )


def cut_contexts(runs: dict[str, Any]) -> str:
    most = max(max(steps) for steps in values(runs, "self_distill/context_truncated").values())
    return f"{at_most(most)} in all runs of the tiny policy."


def clipped_mass(runs: dict[str, Any]) -> str:
    cut = runs["opsd_entry_clip"]["steps"]["opsd/clipped_entry_mass"]
    return (
        f"between {percent(min(cut))} and {percent(max(cut))} in OPSD with `opsd_entry_clip=0.05` on the tiny policy, "
        "which unlearns ([the ablation](opsd.md))."
    )


def end_split(runs: dict[str, Any]) -> str:
    names = {name for run in runs.values() for name in run["steps"] if name.endswith("_share")}
    least = min(min(steps) for name in names for steps in values(runs, name).values())
    return f"the share of the tiny policy's one end token was {percent(least)} throughout."


def end_disagreement(runs: dict[str, Any]) -> str:
    apart = {}
    for name, run in runs.items():
        sides = [v for k, v in run["steps"].items() if k.startswith("end_tokens/") and k.endswith("_logp")]
        if len(sides) == 2:
            differences = [abs(a - b) for a, b in zip(*sides, strict=True) if a is not None and b is not None]
            apart[name] = max(trailing(differences))
    return f"at most {max(apart.values()):.2f} nats over five steps in all runs that ask a teacher."


TEXTS = {
    "no_teacher": no_teacher,
    "first_tokens": first_tokens,
    "leakage": leakage,
    "epistemic": epistemic,
    "entropy_low": entropy_low,
    "entropy_high": entropy_high,
    "length_tail": length_tail,
    "truncated": truncated,
    "no_spread": no_spread,
    "gate_shut": gate_shut,
    "gate_open": gate_open,
    "cut_contexts": cut_contexts,
    "clipped_mass": clipped_mass,
    "end_split": end_split,
    "end_disagreement": end_disagreement,
}
