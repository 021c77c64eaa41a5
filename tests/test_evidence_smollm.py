"""The real checkpoint of the evidence: its problems, its warm-up, a run at toy size, and the tables."""

import json
import random
import sys
from pathlib import Path

import pytest

from trl_selfdistill import PrivilegedContextCollator

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from evidence import smollm


@pytest.fixture
def toy(model_dir, tokenizer, tmp_path, monkeypatch):
    """The folder of runs whose policy is the tiny model, and settings of seconds."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(model_dir).save_pretrained(tmp_path / "smollm-0")
    tokenizer.save_pretrained(tmp_path / "smollm-0")
    small = {"max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4, "bf16": False}
    monkeypatch.setattr(smollm, "SETTINGS", {**smollm.SETTINGS, **small})
    monkeypatch.setattr(smollm, "EVERY", 1)
    monkeypatch.setattr(smollm, "SEEDS", (0,))
    return tmp_path


def test_no_sum_is_on_two_sides():
    train, held_out = smollm.problems_of(1)
    sides = [{frozenset(row["prompt"][-1]["content"].split()[-4:-1:2]) for row in rows} for rows in (train, held_out)]
    assert not sides[0] & sides[1]
    assert len(train) + len(held_out) == 100
    assert 59 <= len(train) <= 62


def test_the_warm_up_is_right_with_the_hint_and_mostly_right_without():
    train = smollm.problems_of(0)[0].to_list()
    answers = {row["prompt"][-1]["content"]: row["solution"] for row in train}
    rows = smollm.warm_up_rows(train, random.Random(0), 2000)
    right = {True: [], False: []}
    for prompt, said in rows:
        question, hint, _ = prompt[-1]["content"].partition(" Hint")
        right[bool(hint)].append(said == answers[question])
    assert all(right[True])
    assert len(right[True]) == len(right[False]) == 1000
    assert abs(sum(right[False]) / 1000 - smollm.WARM_UP["right"]) < 0.05


def test_the_warm_up_shows_the_prompt_of_the_teacher(tokenizer):
    row = smollm.problems_of(0)[1][0]
    collator = PrivilegedContextCollator(tokenizer, smollm.HINT)
    made = collator([row["prompt"]], [row["solution"]])["teacher_prompt_ids"][0].tolist()
    own = tokenizer.apply_chat_template(smollm.hinted(row), add_generation_prompt=True, return_dict=False)
    assert made == own


@pytest.mark.slow
@pytest.mark.apart
def test_every_method_runs_and_finished_runs_are_skipped(toy, capsys):
    file = toy / "smollm.json"
    smollm.main(toy, file)
    runs = json.loads(file.read_text())
    assert [run["method"] for run in runs] == list(smollm.METHODS)
    assert all([point["step"] for point in run["curve"]] == [0, 1, 2] for run in runs)
    assert len({json.dumps(run["curve"][0]) for run in runs}) == 1, "the same policy, and the same samples of it"
    assert capsys.readouterr().out
    smollm.main(toy, file)
    assert not capsys.readouterr().out
    assert json.loads(file.read_text()) == runs


def test_the_tables_show_means_and_seeds():
    def run(method, seed, end):
        curve = [{"step": 0, "pass@1": 0.2, "pass@8": 0.5}, {"step": 20, "pass@1": end, "pass@8": 1.0}]
        hint = {"pass@1": 0.9, "pass@8": 1.0}
        return {"method": method, "seed": seed, "curve": curve, "with_hint": hint, "cpu_seconds": 10.0}

    runs = [run("grpo", 0, 0.4), run("grpo", 1, 0.6), run("rlrt", 0, 1.0)]
    assert smollm.results_table(runs).splitlines()[2:] == [
        "| grpo | 2 | 0.20 | 0.50 | 0.50 | 1.00 | 0.40, 0.60 | 10 |",
        "| rlrt | 1 | 0.20 | 1.00 | 0.50 | 1.00 | 1.00 | 10 |",
    ]
    assert smollm.starts_table(runs).splitlines()[2] == "| 0 | 0.20 → 0.90 | 0.50 → 1.00 |"
    assert smollm.results_table([]) == smollm.starts_table([]) == "Not run yet."
