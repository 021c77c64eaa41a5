"""A teacher prompt that is longer than the model's window loses the middle of its context, and the run says so."""

import pytest
from helpers import build, distill_settings, sums, watch_signals
from tiny_policy import build_tokenizer
from transformers import MambaConfig, MambaForCausalLM

from trl_selfdistill import PrivilegedContextCollator, RLRTConfig, RLRTTrainer

TOKENIZER = build_tokenizer()
CHAT = [{"role": "user", "content": "5+7="}]


def text_of(out, row: int = 0) -> str:
    return TOKENIZER.decode(out["teacher_prompt_ids"][row][out["teacher_prompt_mask"][row].bool()].tolist())


@pytest.mark.filterwarnings("ignore:A teacher prompt")
@pytest.mark.parametrize("prompt", ["5+7=", CHAT])
@pytest.mark.parametrize("placement", ["user", "system"])
def test_the_context_alone_is_cut_by_the_excess(prompt, placement):
    template = "<{context}|{feedback}>" + ("{prompt}" if placement == "user" else "")

    def collate(context: str, **limits):
        return PrivilegedContextCollator(TOKENIZER, template, placement, **limits)(
            [prompt], [context], feedback=["a long feedback " * 5]
        )

    whole = text_of(collate("#"))
    room = len(collate("#")["teacher_prompt_ids"][0]) - 1
    for tokens in (1, 9, 30):
        out = collate("x" * 50, window=room + tokens)
        assert len(out["teacher_prompt_ids"][0]) == room + tokens
        kept = text_of(out).removeprefix(whole.split("#")[0]).removesuffix(whole.split("#")[1])
        assert len(kept) == tokens and set(kept) <= set("x\n[...]")
        assert out["context_truncated"].item()
        assert out["context_tokens"].item() == 50
    fits = collate("x" * 50, window=room + 50)
    assert not fits["context_truncated"].item()
    both = collate("x" * 50, max_context_tokens=20, window=room + 30)
    assert len(both["teacher_prompt_ids"][0]) == room + 20
    none_left = collate("x" * 50, window=room - 5)  # too long for the student as well
    assert len(none_left["teacher_prompt_ids"][0]) == room + 1


def test_each_completion_takes_its_own_room():
    with pytest.warns(UserWarning, match="A teacher prompt of 67 tokens and a completion of 30"):
        collate = PrivilegedContextCollator(TOKENIZER, "<{context}> the question: {prompt}", window=87)
        out = collate([""] * 2, ["x" * 50] * 2, completion_tokens=[20, 30])
    assert out["teacher_prompt_mask"].sum(dim=1).tolist() == [67, 57]


def test_the_cut_is_said_once_per_collator():
    with pytest.warns(
        UserWarning, match=r"prompt of 67 tokens .* window of 20 .* context of 50 tokens is cut by 47"
    ) as w:
        collate = PrivilegedContextCollator(TOKENIZER, "<{context}> the question: {prompt}", window=20)
        collate([""] * 2, ["x" * 50] * 2)
        collate([""], ["x" * 60])
    assert len(w) == 1
    assert hash(collate) == hash(collate) and collate == collate


def test_a_trainer_cuts_what_its_model_cannot_hold(model, tokenizer, tmp_path):
    model.config.max_position_embeddings = 64
    rows = [{**row, "solution": "9" * 200} for row in sums().select(range(8)).to_list()]
    config = RLRTConfig(**distill_settings(tmp_path, context="gold", max_steps=2))
    trainer = build(RLRTTrainer, config, model, tokenizer, train_dataset=type(sums()).from_list(rows))
    assert trainer.collator.window == 64
    seen = watch_signals(trainer)
    with pytest.warns(UserWarning, match="A teacher prompt of .* max_completion_length") as caught:
        trainer.train()
    assert sum("A teacher prompt of" in str(w.message) for w in caught) == 1
    for batch in seen:
        lengths = batch.teacher["teacher_prompt_mask"].sum(dim=1) + batch.completion_mask.sum(dim=1)
        assert (lengths == 64).all()
    assert trainer.state.log_history[0]["self_distill/context_truncated"] == 1.0


def test_the_window_is_the_models_and_a_model_without_one_has_no_limit(model, tokenizer, tmp_path):
    config = RLRTConfig(**distill_settings(tmp_path, context="gold"))
    assert build(RLRTTrainer, config, model, tokenizer).collator.window == 512
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}
    endless = MambaForCausalLM(MambaConfig(**shape, eos_token_id=tokenizer.eos_token_id))
    assert build(RLRTTrainer, config, endless, tokenizer).collator.window is None
