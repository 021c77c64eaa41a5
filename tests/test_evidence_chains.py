"""The task `chains` of docs/evidence.md: problems of reasoning-gym, a judge that reads and never evaluates."""

import random
import sys
from statistics import mean

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from evidence import chains, policy
from evidence.tasks import make_task

WORLD = chains.Chains(7)
PROBLEM = chains.problem_of("4 + 3 - 2 + 8")


def value(problem):
    return sum(digit if sign == "+" else -digit for sign, digit in problem)


def test_problems_are_those_of_the_data_set():
    from reasoning_gym import create_dataset

    data = create_dataset(
        "chain_sum", seed=7 * chains.DRAWN, size=300, min_terms=4, max_terms=4, min_digits=1, max_digits=1
    )
    entries = [data[place] for place in range(300)]
    asked = [entry for entry in entries if int(entry["answer"]) >= 0]
    drawn = chains.draw(7)[: len(asked)]
    assert [value(problem) for problem in drawn] == [int(entry["answer"]) for entry in asked]
    assert all(entry["question"].endswith(WORLD.prompt(p)) for entry, p in zip(asked, drawn, strict=True))
    assert 100 < len(asked) < 300


@pytest.mark.parametrize("seed", [7, 3])
def test_what_is_tested_is_not_trained(seed):
    train, test = chains.Chains(seed).split
    assert (train, test) == make_task("chains", seed).split
    terms = {tuple(sorted(problem)) for problem in test}
    assert len(terms) == len(test) == chains.TEST_PROBLEMS == 300
    assert not terms & {tuple(sorted(problem)) for problem in train}
    assert len(train) == len(set(train)) > 3000
    assert not set(WORLD.split[0]) <= set(chains.Chains(8).split[0])


def test_hints_and_solutions_are_right_and_labels_are_well_formed():
    rng = random.Random(0)
    train, test = WORLD.split
    for problem in [*rng.sample(train, 50), *test[:50]]:
        hint, label = WORLD.hinted_label(problem, rng)
        for text in (WORLD.gold(problem), hint, label):
            assert WORLD.judge(problem, text).right
            assert int(text.split()[-1]) == value(problem)
        assert WORLD.judge(problem, WORLD.plain_label(problem, rng)).legal
    assert WORLD.gold(PROBLEM) == WORLD.gold((PROBLEM[3], PROBLEM[1], PROBLEM[2], PROBLEM[0]))


def test_a_right_derivation_can_take_every_order_that_stays_above_zero():
    assert len(set(chains.orders(PROBLEM))) == 18  # 24 without those that begin with - 2
    right = {WORLD.judge(PROBLEM, WORLD.derivation(order)) for order in chains.orders(PROBLEM)}
    assert all(judged.right for judged in right)
    assert len({judged.route for judged in right}) == 18
    steep = [chains.Chains(7).derivation(order)[:5] for order in chains.orders(chains.problem_of("1 - 3 + 5 - 2"))]
    assert sorted(steep) == ["1 + 5"] * 2 + ["5 + 1"] * 2 + ["5 - 2"] * 2 + ["5 - 3"] * 2


def test_the_policy_slips_at_the_hard_steps_of_its_world_alone():
    rng = random.Random(0)
    assert WORLD.slips == chains.Chains(7).slips != chains.Chains(8).slips
    assert all(made >= 0 and made != chains.true_result(step) for step, made in WORLD.slips.items())
    problems = WORLD.split[0][:1500]
    labels = [WORLD.judge(problem, WORLD.plain_label(problem, rng)) for problem in problems]
    assert 0.2 < mean(judged.right for judged in labels) < 0.4
    met = sum(judged.wrong_facts for judged in labels)
    assert 0.15 < sum(judged.repaired for judged in labels) / met < 0.25
    assert all(judged.right == (judged.repaired == judged.wrong_facts) for judged in labels)


@pytest.mark.parametrize(
    "text",
    [
        "8 + 4 12 - 2 10 + 3 14",  # a false total
        "8 + 4 13 - 2 10 + 3 13",  # true at the end alone
    ],
)
def test_a_false_total_is_legal_and_not_right(text):
    judged = WORLD.judge(PROBLEM, text)
    assert (judged.right, judged.legal, judged.route) == (False, True, "+8 +4 -2 +3")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "?",
        "13",
        "8 + 4 12 - 2 10",  # a term is missing
        "8 + 4 12 - 2 10 + 3 13 + 3 16",
        "8 + 4 12 + 2 14 + 3 17",  # another sign
        "8 + 4 12 - 2 10 + 3",
        "8 + 4 12 - 2 10 * 3 13",
        "8 + 4 + - 2 10 + 3 13",
        "+ 8 4 12 - 2 10 + 3 13",
        "8+4 12 - 2 10 + 3 13",
        "8 + 4 ² - 2 10 + 3 13",
        "__import__('os') + 4 12 - 2 10 + 3 13",
    ],
)
def test_the_judge_reads_words_and_evaluates_nothing(text):
    judged = WORLD.judge(PROBLEM, text)
    assert (judged.right, judged.legal, judged.route) == (False, False, "")


def test_every_word_of_the_task_is_one_token_and_a_right_completion_fits():
    tokenizer = policy.build_tokenizer()
    rng = random.Random(0)
    for problem in WORLD.split[0][:200]:
        hint, label = WORLD.hinted_label(problem, rng)
        texts = (WORLD.prompt(problem), hint, label, WORLD.plain_label(problem, rng))
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            assert len(ids) == len(text.split())
            assert tokenizer.unk_token_id not in ids
        assert len(label.split()) + 1 <= WORLD.limit
