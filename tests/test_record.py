"""What `log_token_signals` keeps: which completions, their pieces, all columns, tables and trackers."""

import json
import sys
from types import SimpleNamespace

import pandas
import pyarrow.parquet
import pytest
import tiny_policy
from helpers import build, distill_settings, lenient_reward, run_trainer, sums
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trl_selfdistill import AntiSDConfig, AntiSDTrainer, OPSDConfig, OPSDTrainer, RLRTConfig, RLRTTrainer
from trl_selfdistill.context.rollout import Rollout
from trl_selfdistill.record.history import append_history, read_history
from trl_selfdistill.record.pieces import Pieces, starts
from trl_selfdistill.record.tables import messages, report
from trl_selfdistill.record.token_log import place
from trl_selfdistill.trainer import recorded

BYTES = tiny_policy.build_tokenizer()


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """A vocabulary whose decoder drops the space that comes first, as Llama 2's."""
    words = ["<unk>", "▁", "▁a", "b", "▁c", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    made = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


SPACED = spaced_tokenizer()


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@given(st.text(max_size=30))
def test_pieces_of_a_text_make_the_text(text):
    ids = BYTES(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())  # a token a byte: nothing but ASCII is a token of its own
    pieces = Pieces(BYTES).of(ids)
    assert "".join(pieces) == text and len(pieces) == len(ids)
    assert all(len(piece) <= 1 for piece in pieces)  # each character belongs to one token: its last byte
    at = 0
    for character in text:
        at += len(character.encode())
        assert pieces[at - 1] == character or "\ufffd" in text


@given(st.lists(st.integers(0, 255), max_size=40))
def test_pieces_of_any_bytes_make_what_is_decoded(ids):
    pieces = Pieces(BYTES).of(ids)
    assert "".join(pieces) == decoded(BYTES, ids) and len(pieces) == len(ids)
    assert not pieces or len(pieces[-1]) <= 8  # what is broken does not swallow the rest


@given(st.lists(st.integers(0, 8), max_size=30))
def test_pieces_of_a_decoder_that_drops_a_space(ids):
    pieces = Pieces(SPACED).of(ids)
    assert "".join(pieces) == decoded(SPACED, ids) and len(pieces) == len(ids)


def test_pieces_wait_for_the_rest_of_a_character():
    ids = BYTES("é!", add_special_tokens=False)["input_ids"]
    assert Pieces(BYTES).of(ids) == ["", "é", "!"]
    assert Pieces(BYTES).of(ids[:1]) == ["\ufffd"]  # cut off
    smile = [2, 5, 6, 7, 8, 3]
    assert Pieces(SPACED).of(smile) == ["a", "", "", "", "😀", "b"]
    assert Pieces(SPACED).of([2, 4, 1, 2]) == ["a", " c", " ", " a"]
    assert starts(["a", "", "bc", "d"]) == [0, 1, 1, 3]


def test_the_order_takes_one_of_each_group_first_and_is_drawn():
    def rollouts(seed):
        return [
            Rollout(row={}, completion="", correct=False, group_size=4, index=i, seed=f"{seed}/{i // 4}")
            for i in range(32)
        ]

    order = [r.index for r in sorted(rollouts("a"), key=place)]
    for start in range(0, 32, 8):
        assert sorted(i // 4 for i in order[start : start + 8]) == list(range(8))
    assert sorted(order) == list(range(32)) != order
    assert order == [r.index for r in sorted(rollouts("a"), key=place)]
    assert order != [r.index for r in sorted(rollouts("b"), key=place)]


@pytest.mark.parametrize(("given_", "kept"), [(None, 8), (True, -1), (False, 0), (3, 3), (-1, -1), (0, 0)])
def test_values_of_the_field(given_, kept, tmp_path):
    assert RLRTConfig(**distill_settings(tmp_path, log_token_signals=given_)).log_token_signals == kept


def test_nothing_is_published_unasked(tmp_path):
    pushed = distill_settings(tmp_path, push_to_hub=True)
    assert RLRTConfig(**pushed).log_token_signals == 0
    assert RLRTConfig(**pushed, log_token_signals=2).log_token_signals == 2


@pytest.mark.parametrize("bad", [-2, 1.5, "8"])
def test_values_that_mean_nothing_are_refused(bad, tmp_path):
    with pytest.raises(ValueError, match="log_token_signals"):
        RLRTConfig(**distill_settings(tmp_path, log_token_signals=bad))


def rows_of(folder, name="step_000001"):
    return pyarrow.parquet.read_table(folder / f"token_signals/{name}.parquet").to_pylist()


def test_a_few_completions_are_kept_with_everything(model, tokenizer, tmp_path):
    args = AntiSDConfig(**distill_settings(tmp_path, context="gold", log_token_signals=3, num_generations=4))
    trainer = build(AntiSDTrainer, args, model, tokenizer)
    trainer.context_builder = lambda rollout: None if rollout.index == 0 else rollout.gold
    trainer.train()
    metadata = pyarrow.parquet.read_schema(tmp_path / "token_signals/step_000001.parquet").metadata
    assert metadata[b"run"].decode() == trainer.run_id and metadata[b"trainer"] == b"AntiSD"
    assert metadata[b"weight"].startswith(b"antisd/")
    for step in (1, 2):
        rows = rows_of(tmp_path, f"step_00000{step}")
        assert len(rows) == 3
        assert {row["group"] for row in rows} == {0, 1} and len({row["index"] for row in rows}) == 3
        for row in rows:
            assert row["group"] == row["index"] // 4
            assert row["offsets"] == starts(row["tokens"])
            assert "".join(row["tokens"]).removesuffix("<|end|>") == row["completion"]
            assert row["row_advantage"] is not None and row["views"] == []
            assert (row["teacher_prompt"] is None) == (row["index"] == 0)
            if row["teacher_prompt"]:
                question = json.loads(row["prompt"])[-1]["content"]
                assert f"[{row['context']}]{question}<|end|><|assistant|>" in row["teacher_prompt"]
            else:
                assert row["advantage"] == pytest.approx([row["row_advantage"]] * len(row["tokens"]))


def half(rollout):
    return 0.5


def test_a_row_weight_is_no_opinion_of_the_teacher(model, tokenizer, tmp_path):
    """What the report shows is A_t minus A. With strength 0 that is 0, whatever the rows weigh."""
    config = {"context": "gold", "antisd_strength": 0.0, "row_weight": f"{__name__}.half", "num_generations": 4}
    build(AntiSDTrainer, AntiSDConfig(**distill_settings(tmp_path, **config)), model, tokenizer).train()
    rows = rows_of(tmp_path)
    assert any(row["row_advantage"] for row in rows)
    for row in rows:
        assert row["advantage"] == pytest.approx([row["row_advantage"]] * len(row["tokens"]))


class TwoViews(RLRTTrainer):
    """RLRT that also looks at what a teacher without the solution says."""

    _name = "TwoViews"
    views = ("teacher", "other")

    def contexts(self, rollout):
        return {"teacher": rollout.gold, "other": "99" if rollout.index else None}


def test_each_view_is_kept(model, tokenizer, tmp_path):
    build(TwoViews, RLRTConfig(**distill_settings(tmp_path, max_steps=1, context="gold")), model, tokenizer).train()
    for row in rows_of(tmp_path):
        (other,) = row["views"]
        assert other["name"] == "other"
        assert other["context"] == ("99" if row["index"] else None)
        assert len(other["teacher_logps"]) == len(other["teacher_entropy"]) == len(row["tokens"])
        assert all((value is None) == (row["index"] == 0) for value in other["teacher_logps"])
        if row["index"]:
            assert "[99]" in other["teacher_prompt"]
            assert other["teacher_logps"] != row["teacher_logps"]


def test_nothing_is_kept_where_it_is_off(model, tokenizer, tmp_path):
    args = OPSDConfig(**distill_settings(tmp_path, max_steps=1, log_token_signals=0, log_completions=True))
    build(OPSDTrainer, args, model, tokenizer, reward_funcs=None).train()
    assert not (tmp_path / "token_signals").exists()
    table = pandas.read_parquet(tmp_path / "completions/completions_00001.parquet")
    assert not [name for name in table if name.startswith("self_distill/")]


@pytest.mark.parametrize(
    ("trainer", "config"), [(RLRTTrainer, RLRTConfig), (AntiSDTrainer, AntiSDConfig), (OPSDTrainer, OPSDConfig)]
)
def test_the_completions_table_has_the_signal_in_short(trainer, config, model, tokenizer, tmp_path):
    args = config(**distill_settings(tmp_path, context="gold", log_completions=True, log_token_signals=True))
    made = build(trainer, args, model, tokenizer)
    made.train()
    for step in (1, 2):
        table = pandas.read_parquet(tmp_path / f"completions/completions_0000{step}.parquet")
        rows = rows_of(tmp_path, f"step_00000{step}")
        assert len(table) == len(rows) == 8
        for row, (_, line) in zip(rows, table.iterrows(), strict=True):
            assert line["completion"][0]["content"] == row["completion"]
            assert line["self_distill/log_ratio"] == pytest.approx(sum(row["log_ratio"]) / len(row["tokens"]), abs=1e-5)
            assert line["self_distill/context_source"] == row["context_source"] == "gold"
            assert line["self_distill/correct"] == row["correct"]


def test_the_table_stays_in_line_through_evaluation_and_unfinished_batches(model, tokenizer, tmp_path):
    more = {"per_device_train_batch_size": 4, "steps_per_generation": 2, "max_steps": 4, "log_completions": True}
    more |= {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4, "log_token_signals": 3}
    args = RLRTConfig(**distill_settings(tmp_path, context="gold", **more))
    build(
        RLRTTrainer, args, model, tokenizer, eval_dataset=sums().select(range(3)), reward_funcs=lenient_reward
    ).train()
    for file in sorted((tmp_path / "completions").glob("*")):
        table = pandas.read_parquet(file)
        right = [bool(lenient_reward([c[0]["content"]])[0]) for c in table["completion"]]
        seen = [(a, b) for a, b in zip(right, table["self_distill/correct"], strict=True) if b is not None]
        assert len(seen) >= 4
        assert all(a or not b for a, b in seen)  # what is correct has the reward; what was cut off is not correct
    assert all(len(rows_of(tmp_path, f"step_00000{step}")) == 3 for step in (1, 2, 3, 4))


def test_trackers_get_traces_and_tables(model, tokenizer, tmp_path, monkeypatch):
    sent = []

    class Table:
        def __init__(self, columns, data):
            self.rows = [dict(zip(columns, row, strict=True)) for row in data]

    calls = []
    monkeypatch.setattr(recorded, "report", lambda *given: calls.append(given))
    trainer = build(RLRTTrainer, RLRTConfig(**distill_settings(tmp_path, max_steps=1)), model, tokenizer)
    trainer.args.report_to = ["trackio", "wandb"]  # as late as this, their own callbacks are not needed
    trainer.train()
    rows = rows_of(tmp_path)
    ((given, step, reporters),) = calls
    assert len(given) == len(rows) and step == 1 and reporters == ["trackio", "wandb"]
    trackio = SimpleNamespace(Trace=lambda **facts: facts, log=lambda values, step: sent.append((values, step)))
    wandb = SimpleNamespace(run=object(), Table=Table, log=lambda values: sent.append((values, None)))
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    report(given, step, reporters)
    ((traces, step), (tables, _)) = sent
    assert step == 1 and len(traces["token_signals"]) == len(tables["token_signals"].rows) == len(rows) == 8
    for row, trace, line in zip(rows, traces["token_signals"], tables["token_signals"].rows, strict=True):
        assert trace["messages"][-1] == {"role": "assistant", "content": row["completion"]}
        assert trace["messages"][0]["role"] == "user"
        for found in (trace["metadata"], line):
            assert found["context_source"] == row["context_source"] and found["tokens"] == len(row["tokens"])
            numbers = [u for u in row["log_ratio"] if u is not None]
            mean = pytest.approx(sum(numbers) / len(numbers), abs=1e-5) if numbers else None
            assert found["log_ratio"] == mean


@pytest.mark.parametrize("prompt", ["1", "[1", "plain", '{"a": 1}'])
def test_plain_text_that_looks_like_json_stays_a_text(prompt):
    assert messages({"prompt": prompt, "completion": "c"})[0] == {"role": "user", "content": prompt}


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4)), min_size=1, max_size=12))
def test_the_history_is_that_of_the_last_run_and_its_last_word(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("history")
    for i, (run, step) in enumerate(lines):
        append_history(folder, run, step, {"i": i, "nan": float("nan"), "text": "x"})
    with (folder / "selfdistill_metrics.jsonl").open("a") as file:
        file.write('{"run": "c", "st')  # killed here
    last = {step: i for i, (run, step) in enumerate(lines) if run == lines[-1][0]}
    assert read_history(folder) == [{"run": lines[-1][0], "step": s, "i": last[s]} for s in sorted(last)]


@pytest.mark.slow
def test_two_processes_and_a_restart_keep_the_same(model_dir, tmp_path):
    """The completions are scripted by their place, so that nothing but the choice could differ."""

    def job(name, processes, **more):
        out = tmp_path / name
        config = distill_settings(out / "run", context="gold", log_token_signals=3, max_steps=4, save_strategy="steps")
        config |= {"save_steps": 2, "per_device_train_batch_size": 8 // processes}
        run_trainer(
            out, trainer="RLRTTrainer", model=model_dir, config=config, processes=processes, scripted=True, **more
        )
        return [rows_of(out / "run", f"step_00000{step}") for step in (3, 4)]

    whole = job("one", 1)
    first = tmp_path / "one/run/checkpoint-2"
    for other in (job("two", 2), job("again", 1, resume=str(first))):
        for ours, theirs in zip(whole, other, strict=True):
            assert [r["index"] for r in ours] == [r["index"] for r in theirs]
            assert [r["tokens"] for r in ours] == [r["tokens"] for r in theirs]
            for a, b in zip(ours, theirs, strict=True):
                assert a["log_ratio"] == pytest.approx(b["log_ratio"], abs=1e-4)
