"""The demo over seeds: the numbers in the docs are those of the raw data, and the script goes on where it stopped."""

import json
import sys

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import demo_seeds
import quickstart
from demo_seeds import RESULTS, summary, table
from smollm2 import chain_sums, split


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    """The demo silences libraries for the whole process, which is the other tests' too."""
    monkeypatch.setattr(quickstart, "quiet", lambda: None)


def raw() -> dict:
    return json.loads(RESULTS.read_text())


def test_the_docs_say_what_the_raw_data_say():
    results = raw()
    assert table(results) in (ROOT / "docs/quickstart.md").read_text()
    for page in ("docs/quickstart.md", "docs/rlrt.md", "recipes/README.md"):
        assert summary(results) in (ROOT / page).read_text(), page


def test_the_raw_data_are_those_of_the_demo_as_it_is():
    results = raw()
    assert results["settings"] == quickstart.SMOLLM2
    assert sorted(results["runs"]) == [str(seed) for seed in range(8)]
    for run in results["runs"].values():
        assert len(run["rewards"]) == len(run["taught"]) == quickstart.SMOLLM2["max_steps"]


def test_the_rise_is_sure():
    runs = raw()["runs"].values()
    assert sum(run["after"] > 0.6 for run in runs) >= 7
    assert all(run["before"] < 0.4 for run in runs)


def fake_run(seeds: list[int]):
    def run(args) -> quickstart.Outcome:
        seeds.append(args.seed)
        entry = {"reward": 0.5, "grad_norm": 1.0, "frac_reward_zero_std": 0.0, "completions/clipped_ratio": 0.25}
        return quickstart.Outcome(0.1, 0.5 + 0.2 * args.seed, 1.0, [entry | {"self_distill/has_teacher": 1.0}, {}])

    return run


def test_it_goes_on_where_it_stopped_and_counts(tmp_path, monkeypatch, capsys):
    ran: list[int] = []
    monkeypatch.setattr(quickstart, "run", fake_run(ran))
    path = tmp_path / "new/demo.json"
    demo_seeds.main(["--seeds", "1", "--results", str(path)])
    demo_seeds.main(["--seeds", "0", "1", "--results", str(path)])
    assert ran == [1, 0]
    assert [file.name for file in path.parent.iterdir()] == ["demo.json"]
    shown = capsys.readouterr().out
    assert "1 of 2 seeds end above 60 %: from 10 %–10 % to 50 %–70 %, median 60 %" in shown
    assert "| 1 | 10 % | 70 % | 50 % | 50 % | 25 % |" in shown


def test_runs_with_other_settings_are_not_mixed(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "run", fake_run([]))
    path = str(tmp_path / "demo.json")
    demo_seeds.main(["--seeds", "0", "--results", path])
    with pytest.raises(ValueError, match=r"other settings.*--results"):
        demo_seeds.main(["--seeds", "1", "--results", path, "--steps", "3"])


@pytest.mark.parametrize("seed", range(8))
def test_no_sum_is_trained_and_held_out_the_other_way_round(seed):
    train, held_out = split(chain_sums(100, seed=0, signs="+").shuffle(seed), 60)
    words = [[row["prompt"][-1]["content"].split() for row in rows.to_list()] for rows in (train, held_out)]
    pairs = [{frozenset((w[-4], w[-2])) for w in side} for side in words]
    assert not pairs[0] & pairs[1]
    assert len(train) + len(held_out) == 100 and len(train) in (60, 61)
    assert all(w[-3] == "+" for side in words for w in side)


@pytest.mark.apart
@pytest.mark.slow
def test_the_script_runs_the_demo(tmp_path, capsys):
    path = tmp_path / "demo.json"
    command = ["--tiny", "--steps", "10", "--results", str(path), "--output", str(tmp_path)]
    demo_seeds.main([*command, "--seeds", "0", "1"])
    runs = json.loads(path.read_text())["runs"]
    assert sorted(runs) == ["0", "1"]
    assert runs["0"]["rewards"] != runs["1"]["rewards"]  # the seed arrives
    demo_seeds.main([*command, "--seeds", "0"])
    assert json.loads(path.read_text())["runs"] == runs
    assert table({"runs": runs}) in capsys.readouterr().out
