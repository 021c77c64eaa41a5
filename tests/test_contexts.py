import pytest
from helpers import build, distill_settings
from hypothesis import given
from hypothesis import strategies as st

from trl_selfdistill import Context, OPSDConfig, OPSDTrainer
from trl_selfdistill.context.answers import final_answer, majority
from trl_selfdistill.context.builders import (
    NO_PRIVILEGED_TEXT,
    as_context,
    correct_peer,
    gold,
    majority_peer,
    no_text,
    other_gold,
    own_peer,
    peer_else_gold,
    resolve_context,
    verdict,
)
from trl_selfdistill.context.groups import Outcome, make_groups
from trl_selfdistill.context.groups import other_gold as pick_other_gold
from trl_selfdistill.context.rollout import Rollout, completion_text, conversation_text


def outcomes(texts, passed=None, finished=None, golds=None) -> list[Outcome]:
    every = [True] * len(texts)
    golds = golds or [None] * len(texts)
    parts = zip(texts, finished or every, passed or every, every, golds, strict=True)
    return [Outcome(*part) for part in parts]


def group_peers(texts, eligible, size, seed) -> list[tuple[str, ...]]:
    groups = make_groups(outcomes(texts, eligible), size, seed)
    return [groups[i // size].others(i, correct=True) for i in range(len(texts))]


def rollout(**kwargs) -> Rollout:
    return Rollout(**{"row": {}, "completion": "y", "correct": True, **kwargs})


def test_builtin_builders():
    both = rollout(gold="g", peers=("p", "q"))
    assert gold(both) == Context("g", "gold")
    assert correct_peer(both) == peer_else_gold(both) == Context("p", "peer")
    alone = rollout(gold="g")
    assert (correct_peer(alone), peer_else_gold(alone)) == (None, Context("g", "gold"))
    assert peer_else_gold(rollout()) is gold(rollout()) is other_gold(rollout()) is own_peer(rollout()) is None
    assert no_text(rollout()) is NO_PRIVILEGED_TEXT
    assert other_gold(rollout(other_gold="o")) == Context("o", "other_gold")


def test_own_peers_are_drawn_for_each_rollout_and_the_groups_peer_once():
    peers = tuple("abcdefgh")
    drawn = {own_peer(rollout(peers=peers, seed="s", index=i)).text for i in range(40)}
    assert len(drawn) > 3
    assert own_peer(rollout(peers=peers, seed="s", index=1)) == own_peer(rollout(peers=peers, seed="s", index=1))


def test_a_group_has_two_teacher_prompts_at_most():
    for seed in range(50):
        firsts = [peers[0] for peers in group_peers([f"text {i}" for i in range(8)], [True] * 8, 8, str(seed))]
        assert sorted(firsts.count(text) for text in set(firsts)) == [1, 7]


def test_wrong_and_finished_peers():
    (group,) = make_groups(
        [
            Outcome("right", True, True, True),
            Outcome("cut", False, True, True),
            Outcome("wrong", True, False, True),
            Outcome("unknown", True, False, False),
        ],
        4,
        "s",
    )
    assert group.others(1, correct=True) == ("right",)
    assert group.others(0, correct=False) == ("wrong",)
    assert set(group.others(0)) == {"wrong", "unknown"}
    assert group.pass_rate == pytest.approx(1 / 3)  # the right one that was cut off is not correct; one has no reward


def test_another_gold_is_never_the_own_one_and_the_same_for_the_group():
    golds = ["1", "1", "2", "2", "1", "1", None, None]
    groups = make_groups(outcomes(list("abcdefgh"), golds=golds), 2, "s")
    for group, wanted in zip(groups, ("2", "1", "2", ("1", "2")), strict=True):
        assert pick_other_gold(groups, group) in wanted
    alone = make_groups(outcomes(["a", "b"], golds=["1", "1"]), 2, "s")
    assert pick_other_gold(alone, alone[0]) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}} or 3", r"\frac{1}{2}"),
        ("it is 1,234.5.", "1234.5"),
        ("first 3, then -7", "-7"),
        ("yes\nno ", "no"),
        (r"\boxed{cut off", r"\boxed{cut off"),
        (" ", None),
    ],
)
def test_final_answers(text, answer):
    assert final_answer(text) == answer


def test_the_majority_is_the_most_frequent_answer():
    assert majority(["1", "2", "2", None], "s") == "2"
    assert {majority(["1", "2"], str(seed)) for seed in range(20)} == {"1", "2"}
    assert majority([None], "s") is None
    mine = rollout(completion="= 3", finished_peers=("it is 2", "so 3", "3!"), seed="s")
    assert majority_peer(mine) == Context("so 3", "majority")
    assert majority_peer(rollout(completion="= 3", finished=False, finished_peers=())) is None


@pytest.mark.parametrize("blank", ["", " \n\t", Context("  ", "gold"), None, [{"role": "assistant", "content": " "}]])
def test_a_blank_context_is_none(blank):
    assert as_context(blank, maker="context_builder") is None


def test_what_a_builder_may_return():
    assert as_context("text", maker="m") == Context("text", "custom")
    assert as_context(NO_PRIVILEGED_TEXT, maker="m") is NO_PRIVILEGED_TEXT
    turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    assert as_context(Context(turns, "mine"), maker="m") == Context("User: 1+1?\n\nAssistant: 2", "mine")
    assert conversation_text(turns[1:]) == "2"
    with pytest.raises(ValueError, match=r"context_builder must return.*int"):
        as_context(3, maker="context_builder")


def test_the_verdict_follows_the_raw_reward():
    assert verdict(rollout()) == "The answer is correct."
    assert verdict(rollout(correct=False)) == "The answer is incorrect."
    assert verdict(rollout(correct=False, passed=True, finished=False)) == "The answer is correct."
    assert verdict(rollout(assessed=False)) == "The answer was not assessed."
    assert verdict(rollout(feedback="passes 3 of 4", row={"feedback": "static"})) == "passes 3 of 4"
    assert verdict(rollout(row={"feedback": "static"})) == "The answer is correct."


groups = st.tuples(st.integers(1, 6), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(
        st.just(shape[0]), st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    )
)


@given(groups, st.text(max_size=5))
def test_peers_are_eligible_members_of_the_own_group_and_never_the_rollout_itself(group, seed):
    size, eligible = group
    texts = [f"text {i}" for i in range(len(eligible))]
    for index, peers in enumerate(group_peers(texts, eligible, size, seed)):
        start = index - index % size
        expected = {texts[i] for i in range(start, start + size) if eligible[i] and i != index}
        assert len(peers) == len(expected)
        assert set(peers) == expected


def test_peers_depend_on_the_seed_alone():
    texts, eligible = [str(i) for i in range(16)], [True] * 16
    assert group_peers(texts, eligible, 8, "a") == group_peers(texts, eligible, 8, "a")
    assert group_peers(texts, eligible, 8, "a") != group_peers(texts, eligible, 8, "b")


def test_the_first_peer_is_uniform():
    counts = dict.fromkeys("bcd", 0)
    for seed in range(3000):
        counts[group_peers(list("abcd"), [True] * 4, 4, str(seed))[0][0]] += 1
    assert all(900 < count < 1100 for count in counts.values()), counts


def test_an_equal_text_of_another_rollout_is_a_peer_but_an_empty_one_is_not():
    assert group_peers(["7", "7", " \n"], [True] * 3, 3, "s") == [("7",), ("7",), ("7", "7")]


def test_incomplete_groups_are_refused():
    with pytest.raises(ValueError, match="groups of 4"):
        group_peers(["a"] * 6, [True] * 6, 4, "s")


def test_resolve_by_name_and_by_path():
    assert resolve_context("peer") is correct_peer
    assert resolve_context("trl_selfdistill.context.builders.gold") is gold


@pytest.mark.parametrize(
    "name", ["golden", "no.such.module.f", "trl_selfdistill.context.builders.nothing", "math.pi", ""]
)
def test_resolve_refuses_what_is_not_a_function(name):
    with pytest.raises(ValueError, match="context="):
        resolve_context(name)


def test_text_of_completions():
    assert completion_text("plain") == "plain"
    assert completion_text([{"role": "assistant", "content": "a"}]) == "a"
    assert completion_text([{"role": "assistant", "content": [{"type": "text", "text": "b"}]}]) == "b"
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]},
        {"role": "tool", "name": "add", "content": "3"},
        {"role": "assistant", "reasoning_content": "so", "content": "three"},
    ]
    assert completion_text(turns) == "add({'a': 1})\n3\nso\nthree"


def test_opsd_refuses_peers_that_can_never_come(model_dir, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"context='peer'.*num_generations"):
        OPSDConfig(**distill_settings(tmp_path, context="peer", num_generations=1))
    for context in ("peer", "peer_else_gold"):
        config = OPSDConfig(**distill_settings(tmp_path, context=context))
        with pytest.raises(ValueError, match=f"context='{context}' needs reward_funcs"):
            build(OPSDTrainer, config, str(model_dir), tokenizer, reward_funcs=None)
        build(OPSDTrainer, config, str(model_dir), tokenizer)
