import pytest
from helpers import build, distill_settings
from hypothesis import given
from hypothesis import strategies as st

from trl_selfdistill import OPSDConfig, OPSDTrainer
from trl_selfdistill.context.builders import context_source, correct_peer, gold, peer_else_gold, resolve_context
from trl_selfdistill.context.rollout import Rollout, completion_text, group_peers


def rollout(**kwargs) -> Rollout:
    return Rollout(**{"row": {}, "completion": "y", "correct": True, **kwargs})


def test_builtin_builders():
    both = rollout(gold="g", peers=("p", "q"))
    assert (gold(both), correct_peer(both), peer_else_gold(both)) == ("g", "p", "p")
    alone = rollout(gold="g")
    assert (correct_peer(alone), peer_else_gold(alone)) == (None, "g")
    assert peer_else_gold(rollout()) is None


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


def test_sources():
    r = rollout(gold="g", peers=("p",))
    assert [context_source(r, c) for c in (None, "p", "g", "x")] == ["none", "peer", "gold", "custom"]


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
