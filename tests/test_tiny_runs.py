"""The runs of the tiny policy: the script goes on where it stopped, and the raw data are those of the code as it is."""

import json
import math
import sys

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import tiny_health
import tiny_numbers
import tiny_raw
import tiny_runs
import tiny_tables
from tiny_runs import RESULTS, RUNS


def raw() -> dict:
    return json.loads(RESULTS.read_text())


def test_the_raw_data_are_those_of_the_runs_as_they_are():
    runs = raw()["runs"]
    assert sorted(runs) == sorted(RUNS)
    for name, run in runs.items():
        assert run["run"] == RUNS[name].as_data(), f"{name} has other settings now: run benchmarks/tiny_runs.py"
        lengths = {len(values) for values in run["steps"].values()}
        assert lengths == {run["run"]["settings"]["max_steps"]}


def test_the_raw_data_are_small():
    assert RESULTS.stat().st_size < 400_000


def test_what_the_pages_say_in_words_is_so():
    """docs/health.md says which runs raised nothing; the other pages say which learn."""
    runs = raw()["runs"]
    for name, run in runs.items():
        learns = name in tiny_health.HEALTHY
        assert (run["after"] > 0.7) == learns, name
        assert bool(run["health"]) != learns, name
    assert runs["sdpo"]["after"] == min(runs[name]["after"] for name in tiny_health.HEALTHY)


def test_the_script_makes_what_is_missing_and_no_more(tmp_path, capsys):
    path = tmp_path / "new/runs.json"
    command = ["--toy", "--results", str(path), "--only"]
    tiny_runs.main([*command, "opsa"])
    first = json.loads(path.read_text())["runs"]["opsa"]
    tiny_runs.main([*command, "opsa", "opsd"])
    runs = json.loads(path.read_text())["runs"]
    assert [file.name for file in path.parent.iterdir()] == ["runs.json"]
    assert runs["opsa"] == first, "made once: its seconds would be others"
    assert runs["opsd"]["run"]["lora"] and not runs["opsd"]["run"]["reward"]
    assert len(runs["opsd"]["steps"]["opsd/clipped_tokens"]) == 2
    assert "loss" not in runs["opsd"]["steps"]
    shown = capsys.readouterr().out
    assert shown.count("opsa:") == shown.count("opsd:") == 1


def test_a_run_with_other_settings_is_made_again(tmp_path, monkeypatch):
    made: list[str] = []
    monkeypatch.setattr(tiny_runs, "tiny_policy", lambda steps: ())
    monkeypatch.setattr(tiny_runs, "load", lambda policy: ())
    monkeypatch.setattr(tiny_runs, "accuracy", lambda hint: 1.0)

    def measured(run, policy, folder):
        made.append(folder.name)
        return {"run": run.as_data(), "before": 0.2, "after": 0.9}

    monkeypatch.setattr(tiny_runs, "measured", measured)
    path = tmp_path / "runs.json"
    runs = {name: RUNS[name] for name in ("rlrt", "sdpo")}
    tiny_runs.measure(runs, path, policy_steps=1)
    tiny_runs.measure(runs, path, policy_steps=1)
    tiny_runs.measure(runs | {"sdpo": RUNS["opsa"]}, path, policy_steps=1)
    assert made == ["rlrt", "sdpo", "sdpo"]


def test_toy_numbers_do_not_replace_the_raw_data():
    with pytest.raises(SystemExit):
        tiny_runs.main(["--toy"])


def test_columns():
    history = [
        {"loss": 1.0, "reward": 0.123456789, "end_tokens/7_share": 1.0},
        {"eval_loss": 1.0, "reward": 9.0},
        {"loss": 1.0, "reward": math.nan},
    ]
    assert tiny_raw.columns(history) == {"reward": [0.12346, None], "end_tokens/7_share": [1.0, None]}


def test_lists_of_numbers_are_one_line(tmp_path):
    data = {"a": [1, None], "b": {"[{context}]": [["rule", 3]], "c": []}}
    tiny_raw.save(tmp_path / "a.json", data)
    assert json.loads((tmp_path / "a.json").read_text()) == data
    assert '"a": [ 1, null ]' in (tmp_path / "a.json").read_text()


def test_numbers():
    assert tiny_numbers.percent(0.1234) == "12 %" and tiny_numbers.percent(0.1234, 1) == "12.3 %"
    assert tiny_numbers.at_most(0) == "0 %" and tiny_numbers.at_most(0.1) == "at most 10 %"
    assert tiny_numbers.first([1, 2, 3, 4, 5, 99]) == 3
    assert tiny_numbers.last([99, 1, 2, 3, 4, 5]) == 3
    assert tiny_numbers.last([1, 2, 4], 2) == 3
    values = [2.0] * 10 + [1.0] * 5
    assert tiny_numbers.trailing(values) == pytest.approx([1.8, 1.6, 1.4, 1.2, 1.0])
    assert tiny_numbers.drifts(values)[-1] == 0.5
    assert tiny_numbers.longest([True, False, True, True, False]) == 2
    assert tiny_numbers.together(["a"]) == "a" and tiny_numbers.together("abc") == "a, b and c"
    assert tiny_numbers.bullet("word", "words " * 40).splitlines()[1].startswith("  words")


def test_the_gate_is_looked_at_after_the_warm_up():
    steps = {"antisd/gate": [0, 0, 1, 0], "antisd/warm_entropy": [None, 2.0, 2.0, 2.0], "antisd/entropy": [1, 1, 3, 1]}
    assert tiny_numbers.after_warmup(steps) == [1, 0]
    assert tiny_health.open_entropies(steps) == [1.5]


def test_the_table_names_the_first_step_of_each_complaint():
    run = {"run": {"settings": {"max_steps": 9}}, "before": 0.2, "after": 0.0}
    made = tiny_health.table({"a": run | {"health": [["x", 3], ["w", 4], ["x", 8]]}, "b": run | {"health": []}})
    assert "| `a` | 20 % to 0 % | 9 | `w` (4), `x` (3) |" in made
    assert "| `b` | 20 % to 0 % | 9 | nothing |" in made


def test_a_run_in_a_sentence():
    settings = {"max_steps": 9, "per_device_train_batch_size": 128, "learning_rate": 3e-4}
    run = {"run": {"settings": settings, "reward": False}, "before": 0.2, "after": 0.9, "training_cpu_seconds": 7.4}
    said = tiny_tables.learned({"runs": {"poweropd": run}}, "poweropd")
    assert "20 % to 90 % in 9 steps of 128 rollouts, without a reward, with the defaults" in said
    assert said.endswith("a learning rate of 3e-4; 7 CPU-seconds of training. One seed.")
