"""The benchmark of the training phase runs, compares what it says it compares, and counts operations right."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from helpers import ROOT
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(ROOT / "benchmarks"))
import cpu
import last_position
import opsd_memory
import phase_variants
import shared_prefix
import training_phase
import views

from trl_selfdistill.cli.flops import Shape, causal_pairs, step_flops

TOY = Shape(16, 24, 12, 4)


@pytest.mark.parametrize("lora", [False, True])
def test_operations_are_those_that_torch_counts(lora):
    """GRPO's step, counted by torch, for which attention is a square instead of a triangle."""
    a = training_phase.arguments(["--toy"])
    sizes = phase_variants.sizes_of(a)
    config = LlamaConfig(**phase_variants.TOY, tie_word_embeddings=True, attn_implementation="eager")
    model = LlamaForCausalLM(config)
    model.enable_input_require_grads()
    if lora:
        model = get_peft_model(model, LoraConfig(r=phase_variants.RANK, target_modules="all-linear"))
    width = TOY.prompt + TOY.completion
    ids = torch.randint(0, 500, (TOY.rollouts, width))
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=ids, logits_to_keep=TOY.completion, use_cache=False).logits
        logits.log_softmax(-1)[..., 0].sum().backward()
    found = sum(counter.get_flop_counts()["Global"].values())
    common = {"lora": lora, "teacher": False, "checkpointing": False}
    without_attention = step_flops(replace(sizes, attention=0), TOY, **common)
    attention = step_flops(sizes, TOY, **common) - without_attention
    squares = attention * width * width // causal_pairs(width)
    assert found == pytest.approx(without_attention + squares, rel=1e-3)  # the rest is the rotary angles


def test_a_teacher_costs_a_forward_and_a_shared_prompt_less():
    sizes = phase_variants.sizes_of(training_phase.arguments([]))
    shape = Shape(64, 192, 128)
    common = {"lora": True, "checkpointing": False}
    alone = step_flops(sizes, shape, teacher=False, **common)
    plain = step_flops(sizes, shape, teacher=True, **common) - alone
    shared = step_flops(sizes, shape, teacher=True, shared_teacher=True, **common) - alone
    assert 100e6 < sizes.body < 110e6  # SmolLM2-135M without its embeddings
    tokens = 8 * (64 + 192 + 128)
    assert plain == pytest.approx(2 * (sizes.body + sizes.adapter) * tokens + 2 * 8 * 128 * 576 * 49152, rel=0.1)
    assert 0.35 < shared / plain < 0.6


@pytest.mark.parametrize("variant", training_phase.VARIANTS)
def test_every_trainer_sees_the_same_rollouts_and_a_teachers_prompt_of_the_same_length(variant, tmp_path):
    a = training_phase.arguments(["--toy"])
    trainer = phase_variants.trainer_of(a, variant, "lora", TOY, str(tmp_path))
    watch = training_phase.Watch("cpu")
    trainer.add_callback(watch)
    seen = []
    trainer.model.get_base_model().base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args or (kwargs["input_ids"],))[0].clone()), with_kwargs=True
    )
    trainer.train()
    assert watch.seconds > 0
    widths = {ids.size(1) for ids in seen}
    prompt, teacher = TOY.prompt, TOY.prompt + TOY.context
    assert prompt + TOY.completion in widths or prompt in widths
    if variant != "grpo":
        assert teacher + TOY.completion in widths or teacher in widths
    completions = phase_variants.Rollouts(trainer.processing_class, TOY)
    completions.next()
    last = [ids for ids in seen if ids.size(1) == prompt + TOY.completion][-1]
    expected = [completions.prompt_ids + row for row in completions.next()]
    assert sorted(last.tolist()) == sorted(expected)


def run_toy(tmp_path, capsys, *arguments):
    out = tmp_path / "out.json"
    training_phase.main(["--toy", "--json", str(out), *arguments])
    return json.loads(out.read_text()), capsys.readouterr().out


def test_the_script_compares(tmp_path, capsys):
    results, printed = run_toy(tmp_path, capsys, "--only", "rlrt", "trl-sdft-full", "--kinds", "lora", "--no-growth")
    (table,) = results["comparison"]
    assert list(table["variants"]) == ["grpo", "rlrt", "trl-sdft-full"]
    assert table["variants"]["grpo"]["ratio"] == table["variants"]["grpo"]["counted"] == 1.0
    for row in table["variants"].values():
        assert len(row["seconds"]) == 1
        assert row["seconds"][0] > 0
    assert table["variants"]["rlrt"]["counted"] > table["variants"]["rlrt"]["counted_shared"] > 1
    assert "| rlrt |" in printed
    assert not results["growth"]


@pytest.mark.slow
@pytest.mark.apart
def test_the_script_compares_full_fine_tuning_of_all(tmp_path, capsys):
    results, _ = run_toy(tmp_path, capsys, "--kinds", "full", "--no-growth")
    (table,) = results["comparison"]
    assert set(table["variants"]) == set(training_phase.VARIANTS)
    assert all(row["seconds"][0] > 0 for row in table["variants"].values())


@pytest.mark.slow
@pytest.mark.apart
def test_the_script_measures_growth(tmp_path, capsys):
    results, printed = run_toy(tmp_path, capsys, "--only", "opsd", "--kinds", "lora")
    for axis in ("completion", "rollouts"):
        assert set(results["growth"][axis]) == {"grpo", "opsd"}
        for row in results["growth"][axis].values():
            assert len(row["seconds"]) == 4
            assert 0 < row["counted"] < 2
    assert "exponent" in printed


def test_the_exponent_of_a_power_law():
    assert training_phase.exponent([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2)


def test_the_scoring_of_shared_prompts_is_compared(tmp_path, capsys):
    out, sizes = tmp_path / "out.json", ["--prompt", "40", "--completion", "6", "--rollouts", "4", "--rounds", "1"]
    shared_prefix.main(["--toy", *sizes, "--json", str(out)])
    printed = capsys.readouterr().out
    assert "| once |" in printed
    assert float(printed.split()[-1]) < 1e-4
    found = json.loads(out.read_text())
    assert (found["prompt"], set(found["seconds"])) == (40, {"once", "row by row"})
    assert 0 <= found["difference"] < 1e-4


def test_the_views_of_rlcsd_are_compared(tmp_path, capsys):
    out, sizes = tmp_path / "out.json", ["--prompt", "8", "--completion", "6", "--rollouts", "4", "--rounds", "1"]
    ratios = views.main(["--toy", *sizes, "--json", str(out)])
    took = json.loads(out.read_text())
    assert {name: value / took["rlrt"] for name, value in took.items()} == ratios
    assert list(ratios) == ["rlrt", "rlcsd, 1 wrong peer", "rlcsd, 4 wrong peers"]
    assert all(ratio > 0 for ratio in ratios.values())
    assert "| rlrt |" in capsys.readouterr().out


def test_the_product_of_the_last_position_is_timed(tmp_path):
    out = tmp_path / "out.json"
    found = last_position.main(["--vocab", "64", "--json", str(out)])
    assert json.loads(out.read_text()) == found
    assert {dtype: set(took) for dtype, took in found.items()} == {
        "bfloat16": {"slice", "contiguous"}, "float32": {"slice", "contiguous"}
    }  # fmt: skip


def test_opsd_and_sdft_make_the_same_step(monkeypatch):
    """Equal losses say that both read the same rows."""
    shape = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}

    def small(dtype):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, tie_word_embeddings=True))

    draw = torch.randint
    monkeypatch.setattr(torch, "randint", lambda low, high, *given, **kwargs: draw(300, 512, *given, **kwargs))
    monkeypatch.setattr(opsd_memory, "smollm2_shape", small)
    ours, sdft = (opsd_memory.measure(variant, 12, torch.float32)["loss"] for variant in opsd_memory.VARIANTS)
    assert ours == pytest.approx(sdft, rel=1e-4)


def test_the_parts_for_a_cpu_are_run_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "PARTS", {"product": ("last_position.py", "--vocab", "64")})
    for _ in range(2):
        cpu.main(["--results", str(tmp_path), "--only", "product"])
    assert "product: there already" in capsys.readouterr().out
    report = json.loads((tmp_path / "product.json").read_text())
    assert report["command"] == "last_position.py --vocab 64"
    assert "cores, torch" in report["machine"]
    assert set(report["results"]) == {"bfloat16", "float32"}
    monkeypatch.setattr(cpu, "PARTS", {"product": ("last_position.py", "--vocab", "32")})
    cpu.main(["--results", str(tmp_path), "--only", "product"])
    assert "there already" not in capsys.readouterr().out, "another command is another measurement"


def test_the_committed_results_are_those_of_the_parts():
    found = {path.stem: json.loads(path.read_text())["command"] for path in cpu.RESULTS.glob("*.json")}
    assert found == {name: " ".join(arguments) for name, arguments in cpu.PARTS.items()}
