"""The comparison of docs/evidence.md: the tasks are what the page says, the statistics right, the page current."""

import dataclasses
import itertools
import json
import random
import shutil
import sys
from statistics import mean

import numpy as np
import pytest
import torch
from helpers import ROOT
from scipy import stats

sys.path.insert(0, str(ROOT / "benchmarks"))
from evidence import analysis, findings, hints, measures, methods, plan, policy, rates, raw, routes, sampling, tables
from evidence.sums import Sums
from evidence.tasks import make_task
from tiny_policy import build_model

WORLD = routes.Routes(7)
PROBLEM = (5, 11, 10, 1)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_route_is_right_exactly_where_it_meets_no_wrong_fact(seed):
    world = routes.Routes(seed)
    for numbers in random.Random(0).sample(world.split[0], 30):
        for route in itertools.permutations(numbers):
            judged = world.judge(numbers, routes.text_of(world.derivation(route)))
            assert judged.legal
            assert judged.right == (judged.wrong_facts == 0) == (route in world.right_routes(numbers))
            assert judged.route == routes.text_of(route)
            assert judged.repaired == 0


def test_hints_and_solutions_are_right_by_the_facts_of_the_world():
    rng = random.Random(0)
    train, test = WORLD.split
    for problem in [*rng.sample(train, 50), *test[:50]]:
        hint, label = WORLD.hinted_label(problem, rng)
        for text in (WORLD.gold(problem), hint, label):
            assert WORLD.judge(problem, text).right
        assert WORLD.judge(problem, WORLD.plain_label(problem, rng)).legal
    assert WORLD.gold(PROBLEM) == WORLD.gold(PROBLEM[::-1])


def test_a_third_of_the_facts_is_wrong_and_worlds_differ():
    shares = [mean(made != s + d for (s, d), made in routes.Routes(seed).results.items()) for seed in range(5)]
    assert all(0.25 < share < 0.45 for share in shares)
    assert WORLD.results == routes.Routes(7).results != routes.Routes(8).results
    assert all(made >= s + d for (s, d), made in WORLD.results.items())


@pytest.mark.parametrize("task", [WORLD, routes.Routes(3), Sums(3)], ids=lambda task: f"{task.name}-{task.seed}")
def test_what_is_tested_is_not_trained(task):
    train, test = task.split
    assert task.split == make_task(task.name, task.seed).split
    if task.name == "sums":
        assert not set(train) & set(test)
        return
    sets = [frozenset(problem) for problem in test]
    assert len(sets) == len(set(sets)) == routes.TEST_PROBLEMS >= 300
    assert not set(sets) & {frozenset(problem) for problem in train}
    assert len(train) > 3000


def test_the_judge_sees_what_is_wrong():
    route = WORLD.right_routes(PROBLEM)[0]
    numbers = WORLD.derivation(route)
    text = routes.text_of(numbers)
    assert WORLD.judge(PROBLEM, text).right
    others = [text + " 3", text[:-3], text.replace(" ", ""), "", "?", f"{text} =", routes.text_of(numbers[:-2])]
    others += [routes.text_of([*numbers[:-1], numbers[-1] + 1]), routes.text_of([numbers[2], *numbers[1:]])]
    for other in others:
        judged = WORLD.judge(PROBLEM, other)
        assert (judged.right, judged.legal, judged.route) == (False, False, ""), other


def test_a_repaired_fact_is_counted_and_earns_nothing():
    right = WORLD.right_routes(PROBLEM)
    route = next(r for r in itertools.permutations(PROBLEM) if r not in right)
    true, total = [route[0]], route[0]
    for number in route[1:]:
        total += number
        true += [number, total]
    judged = WORLD.judge(PROBLEM, routes.text_of(true))
    assert (judged.right, judged.legal) == (False, False)
    assert judged.repaired == judged.wrong_facts > 0


def test_the_easy_control_has_one_right_answer():
    task = Sums(0)
    assert task.judge((7, 8), "15").right
    assert not task.judge((7, 8), "16").right
    assert not task.judge((7, 8), "15 15").legal
    rng = random.Random(0)
    said = [task.judge((7, 8), task.plain_label((7, 8), rng)).right for _ in range(2000)]
    assert 0.2 < mean(said) < 0.3


def test_pass_at_k_is_the_share_of_draws_with_a_right_one():
    for right in range(6):
        samples = [True] * right + [False] * (5 - right)
        draws = [any(draw) for draw in itertools.combinations(samples, 2)]
        assert measures.pass_at(2, right, 5) == pytest.approx(mean(draws))


def test_an_evaluation_counts_routes_once():
    right = [routes.text_of(WORLD.derivation(route)) for route in WORLD.right_routes(PROBLEM)]
    found = measures.evaluation(WORLD, [PROBLEM], [[right[0]] * 5 + [right[1]] * 3 + ["1 2"] * 8])
    assert (found["right"], found["distinct"]) == ([8], [2])
    assert (found["pass1"], found["routes"], found["legal"]) == (0.5, 2.0, 0.5)
    assert found["length"] == pytest.approx((7 + 2) / 2)


def test_samples_are_those_of_generate_whatever_the_padding():
    tokenizer = policy.build_tokenizer()
    model = build_model(tokenizer, seed=0, num_hidden_layers=1)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(100.0)  # so sure of every token that a sample is the best one
    prompts = ["3 8 =", "[ 8 5 13 3 16 ] 3 8 5 9 ="]
    texts, entropy = sampling.sample(model, tokenizer, prompts, samples=2, limit=6, seed=0)
    for prompt, own in zip(prompts, texts, strict=True):
        inputs = tokenizer([prompt], return_tensors="pt")
        inputs.pop("token_type_ids", None)
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].size(1) :]
        assert own == [tokenizer.decode(out, skip_special_tokens=True)] * 2
    assert entropy < 0.01


def test_a_number_is_one_token():
    ids = policy.build_tokenizer()("[ 8 5 13 ] 3 11 =<|end|>")["input_ids"]
    assert len(ids) == len(set(ids)) == 9


def result_of(method="grpo", world=0, *, lr=1e-3, part="main", right=((4, 4), (8, 8)), **fields):
    curve = []
    for i, counts in enumerate(right):
        distinct = [min(count, 3) for count in counts]
        means = measures.means(counts, distinct, samples=16)
        looks = {"entropy": 1.0, "cpu_seconds": 9.0, "length": 7.0, "legal": 1.0, "repaired": 0.0}
        curve.append({"step": 10 * i, **means, **looks, "right": list(counts), "distinct": distinct})
    run = {"part": part, "task": "routes", "method": method, "world": world, "seed": 0, "lr": lr, "flops_per_step": 1e9}
    return {**run, **fields, "curve": curve, "log": [{"loss": 0.5}]}


def test_the_rate_with_the_largest_area_is_chosen_when_its_sweep_is_finished():
    runs = [plan.run_of("rates", "rlrt", world, lr=lr) for lr in (1e-4, 1e-3) for world in (0, 1)]
    counts = {1e-4: 6, 1e-3: 12}
    results = {r["id"]: result_of("rlrt", r["world"], right=((4, 4), (counts[r["lr"]],) * 2)) for r in runs}
    assert rates.chosen_rate(runs, results, "routes", "rlrt") == 1e-3
    results.pop(runs[0]["id"])
    assert rates.chosen_rate(runs, results, "routes", "rlrt") is None
    with pytest.raises(ValueError, match="no sweep"):
        rates.chosen_rate(runs, results, "routes", "opsd")


def test_a_difference_is_a_paired_t_test_and_its_correction_is_holms():
    rng = np.random.default_rng(0)
    theirs = {(world, 0): float(rng.normal()) for world in range(12)}
    found = []
    for shift in (0.1, 0.6, 1.5):
        ours = {pair: value + shift + float(rng.normal()) for pair, value in theirs.items()}
        d = analysis.difference("x", "pass8", {**ours, (99, 0): 5.0}, theirs)
        test = stats.ttest_rel([ours[pair] for pair in theirs], list(theirs.values()))
        assert (d.pairs, d.p) == (12, pytest.approx(test.pvalue))
        assert (d.low, d.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
        found.append(d)
    ps = sorted(d.p for d in found)
    holm = np.minimum(1, np.maximum.accumulate([p * (3 - i) for i, p in enumerate(ps)]))
    assert sorted(d.corrected for d in analysis.corrected(found, 3)) == pytest.approx(list(holm))
    stricter = [p * (10 - i) for i, p in enumerate(ps)]  # seven planned tests are still missing
    stricter = np.minimum(1, np.maximum.accumulate(stricter))
    assert sorted(d.corrected for d in analysis.corrected(found, 10)) == pytest.approx(list(stricter))
    with pytest.raises(ValueError, match="two"):
        analysis.difference("x", "pass8", {(0, 0): 1.0}, theirs)


def test_the_band_holds_worlds_and_problems():
    same = [result_of(world=world) for world in range(4)]
    line, (low, high) = analysis.band(same, "pass1")
    assert line.tolist() == low.tolist() == high.tolist() == [0.25, 0.5]
    worlds = [result_of(world=w, right=((4, 4), (count, count))) for w, count in enumerate((0, 16, 0, 16))]
    problems = [result_of(world=w, right=((4, 4), (0, 16))) for w in range(4)]
    for results in (worlds, problems):
        line, (low, high) = analysis.band(results, "pass1")
        assert low[1] < line[1] == 0.5 < high[1]


def test_steps_to_a_level_and_a_comparison_at_the_same_level():
    run = result_of(right=((4, 4), (8, 8), (12, 12)))
    assert analysis.steps_to(run, 0.375) == pytest.approx(5)
    assert analysis.steps_to(run, 0.1) == 0
    assert analysis.steps_to(run, 0.9) == float("inf")
    assert analysis.matched(run, "routes", 0.5) == 3
    fast = [result_of("rlrt", world, right=((4, 4), (12, 12))) for world in (0, 1)]
    slow = [result_of("grpo", world, right=((4, 4), (8, 8))) for world in (0, 1)]
    assert analysis.at_the_same_pass1(fast, slow, "pass1").mean == pytest.approx(0)
    fallen = [result_of("opsd", world, right=((4, 4), (2, 2))) for world in (0, 1)]
    assert analysis.at_the_same_pass1(fallen, slow, "pass1") is None, "what fell below its beginning tells nothing"
    assert analysis.loss_from_start(slow, "pass1").mean == pytest.approx(0.25)


def test_raw_numbers_come_back(tmp_path):
    results = {"a": result_of(), "b": result_of("rlrt", overrides={"rlrt_strength": 1.0})}
    raw.write(results, tmp_path / "runs.parquet")
    assert raw.read(tmp_path / "runs.parquet") == results
    again = {"b": result_of("rlrt", world=1), "c": result_of("opsd")}
    for name, result in again.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    assert raw.add(tmp_path, tmp_path / "runs.parquet") == 3
    assert raw.read(tmp_path / "runs.parquet") == {**results, **again}


def test_the_committed_plan_is_the_one_that_the_code_makes():
    runs = json.loads((ROOT / "benchmarks/results/evidence/plan.json").read_text())
    assert runs == plan.full_plan()
    worlds = {part: {r["world"] for r in runs if r["part"] == part} for part in ("main", "rates", "strengths", "pilot")}
    assert not any(a & b for a, b in itertools.combinations(worlds.values(), 2))
    for task in ("routes", "sums", "chains"):
        made = [(r["method"], r["world"]) for r in runs if r["part"] == "main" and r["task"] == task]
        assert len(made) == len(set(made))
        assert {name for name, _ in made} == set(plan.compared(task))
        for name in plan.compared(task):
            pairs = 25 if name in plan.MAIN and task != "chains" else 8
            assert sum(method == name for method, _ in made) == pairs == plan.pairs_of(task, name)
            swept = [r["lr"] for r in runs if (r["part"], r["task"], r["method"]) == ("rates", task, name)]
            assert sorted(swept) == sorted(plan.RATES * 2)


def test_what_joined_later_stands_at_the_end():
    """Runs that the first plan made keep their names and their order."""
    runs = plan.full_plan()
    later = [r["task"] == "chains" or r["method"] in plan.LATER for r in runs]
    assert later == sorted(later)
    assert later.count(False) == 782
    assert set(plan.FIRST) | set(plan.LATER) == set(methods.METHODS) == set(plan.compared("routes"))
    assert {len(plan.compared(task)) for task in ("sums", "chains")} == {19, 16}
    assert set(itertools.chain(*plan.LEFT_OUT.values())) < set(methods.METHODS)


def test_every_strength_is_swept_around_the_papers_value():
    """A trainer that has a strength has a sweep, with the paper's value inside, in worlds of its own."""
    runs = plan.full_plan()
    swept = {r["method"]: set() for r in runs if r["part"] == "strengths"}
    for run in runs:
        if run["part"] == "strengths":
            swept[run["method"]] |= set(run["overrides"].items())
            assert run["world"] in plan.STRENGTH_WORLDS
    trainers = {methods.METHODS[name].trainer for name in swept}
    for name in set(methods.METHODS) - set(methods.missing(list(methods.METHODS))) - {"grpo"}:
        trainer = methods.METHODS[name].trainer
        config = methods.trainer_class(methods.METHODS[name]).config_class
        strengths = [f.name for f in dataclasses.fields(config) if f.name.endswith("_strength")]
        assert not strengths or trainer in trainers or trainer.startswith("evidence.variants.")
    for name, values in swept.items():
        method = methods.METHODS[name]
        field = method.strengths[0]
        default = getattr(methods.trainer_class(method).config_class, field)
        assert (field, default) in values and len(values) == 3


def test_methods_are_settings_that_their_trainers_take(tmp_path):
    absent = methods.missing(list(methods.METHODS))
    assert not set(plan.MAIN) & set(absent)
    assert all(trainer.endswith("Trainer") for trainer in absent.values())
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "per_device_train_batch_size": 16}
    for name in methods.METHODS.keys() - absent.keys():
        method = methods.METHODS[name]
        field, values = method.strengths or ("learning_rate", (1e-3,))
        for value in values:
            config = methods.configuration(method, settings, {field: value})
            assert getattr(config, field) == value
            assert config.num_generations == 8


def test_the_page_says_what_the_raw_numbers_say(capsys):
    with pytest.raises(SystemExit) as end:
        tables.main(["--check"])
    assert end.value.code == 0


def test_what_a_hint_is_worth_is_read_from_the_counts():
    row = {"task": "chains", "world": 3}
    row |= {"plain": {"right": [4, 4], "distinct": [1, 3]}, "hinted": {"right": [16, 8], "distinct": [2, 2]}}
    assert "| chains | 3 | 2 | 0.250 → 0.750 | 0.962 → 1.000 | 2.000 → 2.000 |" in hints.policies_table([row])


def test_tables_and_pictures_come_from_the_numbers(tmp_path):
    results = {}
    for world in range(plan.PAIRS):
        for method, last in (("grpo", 8), ("rlrt", 12 + world % 3), ("rlsd", 6 + world % 3), ("rlrt_gold", 7)):
            if world < plan.pairs_of("routes", method) - (method == "rlrt_gold"):
                results[f"{method}-{world}"] = result_of(method, world, right=((4, 4), (last, last - world % 3)))
        for part in ("rates", "pilot", "strengths"):
            results[f"{part}-{world}"] = result_of("rlrt", world, part=part, overrides={"rlrt_strength": 1.0})
    file, page = tmp_path / "runs.parquet", tmp_path / "page.md"
    raw.write(results, file)
    shutil.copy(ROOT / "docs/evidence.md", page)
    tables.main(["--raw", str(file), "--page", str(page), "--assets", str(tmp_path)])
    text = page.read_text()
    assert "| rlrt | pass@8 | 25 | +" in text
    assert "| rlsd | routes | 8 |" in text
    made = tables.blocks(results)
    assert "rlrt_gold" not in made["differences routes"], "a method without all its worlds is not tested"
    assert "| rlrt_gold | 7 |" in made["results routes gold"]
    assert "| grpo | 25 |" in made["results routes gold"]
    assert "| grpo, the first 8 worlds | 8 |" in made["results routes gold"]
    assert "| rlrt_gold |" not in made["results routes peer"]
    assert made["results routes controls"] == tables.NOTHING
    assert "| rlsd | not reached |" in made["costs routes"]
    others = [mark for mark in made if {"sums", "chains"} & set(mark.split()) and not mark.startswith("claims")]
    assert {made[mark] for mark in others} == {tables.NOTHING}
    assert made["findings routes"] == tables.NOTHING, "a contrast without all its worlds has no finding"
    assert (tmp_path / "evidence_routes.png").stat().st_size > 10_000
    page.write_text(text.replace("| rlrt | pass@8 | 25 | +", "| rlrt | pass@8 | 25 | -"))
    with pytest.raises(SystemExit, match="is not what"):
        tables.main(["--raw", str(file), "--page", str(page), "--check"])


def test_the_findings_are_the_differences_of_the_whole_contrast():
    methods = {
        name: [result_of(name, world, right=((4, 4), (last, last - world % 3))) for world in range(plan.PAIRS)]
        for name, last in (("grpo", 8), ("rlrt", 12), ("antisd", 8), ("opsd", 6))
    }
    lines = findings.findings(methods).splitlines()
    assert [line.split()[1] for line in lines] == ["**rlrt**", "**antisd**", "**opsd**"]
    found = analysis.difference("rlrt", "pass1", *(analysis.by_world(methods[m], "pass1") for m in ("rlrt", "grpo")))
    assert f"pass@1 {found.mean:+.3f} [{found.low:.3f}, {found.high:.3f}]" in lines[0]
    assert "routes +0.000 [0.000, 0.000]" in lines[1]
    few = {name: runs[: plan.OTHER_PAIRS] for name, runs in methods.items()}
    assert len(findings.findings(few, "chains").splitlines()) == 3, "eight worlds are all of them there"
    assert findings.findings(few) == tables.NOTHING
    assert "routes" not in findings.findings(methods, "sums"), "a sum has one right answer"
    methods["opsd_none"] = [result_of("opsd_none", world, right=((4, 4), (4, 2))) for world in range(plan.OTHER_PAIRS)]
    lines = findings.controls(methods).splitlines()
    assert lines[0].startswith("- **grpo**, which has no teacher: +0.223 ["), "1/4 - 7/8/32, in the first eight worlds"
    assert "**opsd**, whose teacher sees a right peer: " in lines[3]
    assert lines[3].endswith("; nothing: -0.062 [-0.062, -0.062].")
    assert "nothing" not in lines[2], "what was not run is not told"
    assert findings.teachers(methods) == tables.NOTHING, "one teacher alone is no comparison"
    (line,) = findings.teachers({**methods, "opsd_ema": methods["opsd"]}).splitlines()
    assert line.startswith("- **opsd**, whose teacher is the policy before training: +")
    assert findings.teachers({}) == tables.NOTHING
    methods["rlrt_gold"] = methods["grpo"][: plan.OTHER_PAIRS]
    assert len(findings.direct(methods).splitlines()) == 4, "a head of two lines, rlrt - grpo and rlrt - rlrt_gold"
    methods["opsd"].pop()
    assert findings.findings(methods) == tables.NOTHING


@pytest.mark.slow
@pytest.mark.apart
def test_runs_are_made_once_and_are_the_same_again(tmp_path, capsys):
    from evidence import runner

    toy = {**plan.smoke_runs()[0], "part": "pilot", "lr": 1e-3}
    runs = [{**toy, "id": name, "method": name} for name in ("grpo", "rlrt_ungated", "opsd_gold")]
    runs.append({**toy, "id": "bad", "method": "rlrt", "overrides": {"rlrt_strength": 2.0}})
    (tmp_path / "plan.json").write_text(json.dumps(runs))
    given = [str(tmp_path / "plan.json"), "--jobs", "1", "--out"]
    with pytest.raises(SystemExit, match="1 runs failed"):
        runner.main([*given, str(tmp_path / "a")])
    assert "rlrt_strength" in (tmp_path / "a/bad.failed").read_text()
    capsys.readouterr()
    runner.main([*given, str(tmp_path / "a"), "--methods", "grpo", "rlrt_ungated", "opsd_gold"])
    assert "3 runs, 0 to be made" in capsys.readouterr().out
    runner.main([*given, str(tmp_path / "b"), "--methods", "opsd_gold"])
    first, again = (raw.finished(tmp_path / name)["opsd_gold"] for name in "ab")
    assert [point["right"] for point in first["curve"]] == [point["right"] for point in again["curve"]]
    grpo = raw.finished(tmp_path / "a")["grpo"]
    assert first["flops_per_step"] > grpo["flops_per_step"] > 0
    assert [point["step"] for point in grpo["curve"]] == [0, 1, 2, 3, 4]
