"""The planner: its counts against models and against what was measured, and what it advises."""

import itertools
import json
import re
import statistics
import sys
from dataclasses import replace

import pytest
import torch
from helpers import ROOT
from transformers import LlamaConfig, Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(ROOT / "benchmarks"))
import scaling_tables

from trl_selfdistill.cli import plan
from trl_selfdistill.cli.flops import Shape, predicted_flops, teacher_flops
from trl_selfdistill.cli.plan_costs import CHUNK_BYTES, Job, Setup, communication_bytes, memory, seconds
from trl_selfdistill.cli.plan_tables import GIB, GPUS, MODELS, find_decoder
from trl_selfdistill.ops.projection import CUDA_CHUNK_BYTES

SMOLLM2 = find_decoder("smollm2-135m", rank=16)


def test_one_rate_explains_all_measured_steps():
    rates = scaling_tables.rates()
    assert len(rates) == 5
    middle = statistics.geometric_mean(rates.values())
    assert 70e9 < middle < 90e9
    assert all(1 / 1.5 < found / middle < 1.5 for found in rates.values()), rates


@pytest.mark.parametrize("lora", [True, False])
def test_the_ratio_of_rlrt_to_grpo_is_the_measured_one_within_a_factor(lora):
    rates = scaling_tables.rates()
    assert 1 / 1.4 < rates["grpo", lora] / rates["rlrt", lora] < 1.4


@pytest.mark.parametrize("algorithm", ["grpo", "rlrt"])
def test_the_ratio_of_full_to_lora_is_the_measured_one_within_a_factor(algorithm):
    rates = scaling_tables.rates()
    assert 1 / 1.4 < rates[algorithm, True] / rates[algorithm, False] < 1.4


def test_a_cpu_scores_the_prompt_in_trls_head_only():
    shape = Shape(64, 192, 128, 8)
    for algorithm in ("grpo", "rlrt", "opsd"):
        here, there = (predicted_flops(SMOLLM2.sizes, shape, algorithm, lora=True, triton=t) for t in (False, True))
        assert here - there == (8 * 63 * 3 * 2 * 576 * 49152 if algorithm == "grpo" else 0)


def test_an_algorithm_without_a_teacher_pays_for_none():
    shape = Shape(64, 192, 128, 8)
    opsa, rlrt = (predicted_flops(SMOLLM2.sizes, shape, algorithm, lora=True) for algorithm in ("opsa", "rlrt"))
    assert rlrt - opsa == sum(teacher_flops(SMOLLM2.sizes, shape, lora=True, shared=True))
    job = plan.read_job(plan.parser().parse_args(["--model", "8b", "--gpus", "8", "--algorithm", "opsa"]))
    assert {found.seconds.teacher for found in plan.plans(job)} == {0.0}


def test_memory_is_that_which_was_measured():
    """The op with a frozen and with a trained head, and OPSD's step."""
    memories = scaling_tables.memories()
    assert len(memories) == 4
    for what, (measured, predicted) in memories.items():
        assert predicted == pytest.approx(measured, rel=0.1 if what.startswith("the op") else 0.15), what


def test_sizes_are_those_of_the_model():
    wanted = MODELS["4b"]
    config = Qwen3Config(
        vocab_size=wanted.sizes.vocab,
        hidden_size=wanted.sizes.hidden,
        intermediate_size=wanted.inner,
        num_hidden_layers=2,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    products = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    assert products == wanted.sizes.body * 2 // wanted.sizes.layers
    assert {n: round(d.weights / 1e9, 1) for n, d in MODELS.items() if n.endswith("b")} == {
        "0.6b": 0.6, "1.7b": 1.7, "4b": 4.0, "8b": 8.2, "14b": 14.8, "32b": 32.8
    }  # fmt: skip


def test_a_folder_with_a_configuration(tmp_path):
    LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    assert find_decoder(str(tmp_path), rank=16) == SMOLLM2
    text = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**text, "model_type": "mixtral", "num_local_experts": 8}))
    with pytest.raises(ValueError, match="experts"):
        find_decoder(str(tmp_path), rank=16)


def job(model: str, gpus: int, gpu: str = "h100", **settings) -> Job:
    options = [[f"--{name}", str(value)] for name, value in settings.items()]
    line = ["--model", model, "--gpus", str(gpus), "--gpu", gpu, *itertools.chain(*options)]
    return plan.read_job(plan.parser().parse_args(line))


def test_more_gpus_share_memory_and_work():
    fsdp2 = Setup("fsdp2", "full", weights_shared=True, states_shared=True)
    few, many = (job("8b", n, vllm=1, prompts=64) for n in (8, 64))
    assert few.rows == 8 * many.rows == 64
    ratio = memory(few, fsdp2).states.optimizer / memory(many, fsdp2).states.optimizer
    assert ratio == pytest.approx(8)
    assert seconds(few, fsdp2).student == pytest.approx(8 * seconds(many, fsdp2).student)
    assert communication_bytes(job("8b", 1), Setup("one process", "full")) == 0


def test_a_smaller_forward_costs_fsdp2_more_communication():
    fsdp2 = Setup("fsdp2", "full", weights_shared=True, states_shared=True)
    whole = job("8b", 8)
    assert seconds(replace(whole, micro=1), fsdp2).communication > 10 * seconds(whole, fsdp2).communication


@pytest.mark.parametrize(
    ("wanted", "best"),
    [
        (job("0.6b", 1, "t4"), {"full": "one process", "lora": "one process", "qlora": "single_gpu_qlora"}),
        (job("8b", 1, "t4"), {"qlora": "single_gpu_qlora"}),
        (job("8b", 8), {"full": "zero2", "lora": "multi_gpu", "qlora": "fsdp2_qlora"}),
        (job("32b", 512, vllm=8), {"full": "fsdp2", "lora": "fsdp2"}),
        (job("32b", 1, "t4"), {}),
    ],
    ids=["16 GB", "16 GB, 8b", "8", "512", "too large"],
)
def test_what_is_advised_from_a_16_gb_card_to_512_gpus(wanted, best):
    found = plan.plans(wanted)
    assert {method: chosen.setup.name for method, chosen in plan.choices(found).items()} == best
    for each in found:
        assert wanted.rows % each.micro == 0
        assert each.generated % each.micro == 0
        assert each.generated * wanted.gpus % 8 == 0
        if each.fits:
            assert each.bytes.peak <= plan.USABLE * wanted.gpu.memory


def test_what_is_known_to_fail_is_refused_or_told(capsys):
    assert plan.main(["--model", "32b", "--gpus", "64", "--vllm", "4"]) == 0
    printed = capsys.readouterr().out
    assert "refused: trl#5975" in printed
    assert "trl#7131" in printed
    assert "qlora: take" not in printed


def test_what_dominates_is_the_largest_part():
    for each in plan.plans(job("8b", 8)):
        assert getattr(each.seconds, each.dominates) >= each.seconds.total / 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--model nothing", "--model 'nothing' is neither"),
        ("--model 8b --gpus 7 --prompts 3", "24 rollouts cannot be divided by 7 GPUs"),
        ("--model 8b --gpus 8 --vllm 3", "--vllm 3 must divide"),
        ("--model 8b --gpus 0", "--gpus must be at least 1"),
        ("--model 8b --utilisation 2", "--utilisation must be"),
        ("--model 8b --context-tokens -1", "--context-tokens must be at least 0"),
    ],
)
def test_mistakes_are_answered_with_one_line(line, message, capsys):
    assert plan.main(line.split()) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_the_chunk_is_that_of_the_op():
    assert CHUNK_BYTES == CUDA_CHUNK_BYTES


def test_the_peaks_are_ordered():
    assert GPUS["t4"].flops < GPUS["a100"].flops < GPUS["h100"].flops
    assert all(gpu.network <= gpu.link < gpu.bandwidth for gpu in GPUS.values())


def test_the_page_has_the_answers_of_the_command(capsys):
    page = (ROOT / "docs/scaling.md").read_text()
    rows = re.findall(r"^\| `(--model .*?)` \| (.*) \|$", page, re.M)
    told = {line: [row for other, row in rows if other == line] for line, _ in rows}
    assert len(told) > 5
    for line, lines in told.items():
        best = plan.choices(plan.plans(plan.read_job(plan.parser().parse_args(line.split()))))
        assert lines == [
            f"{m} | {p.setup.name} | {p.bytes.peak / GIB:.1f} | {p.seconds.total:.1f} | {p.dominates}"
            for m, p in best.items()
        ]
    ((line, block),) = re.findall(r"^```text\n\$ trl-selfdistill plan ([^\n]*)\n(.*?)^```", page, re.M | re.S)
    assert plan.main(line.split()) == 0
    assert capsys.readouterr().out == block
