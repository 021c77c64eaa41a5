"""`trl-selfdistill eval` and `diagnose` on a policy of 0.4 million parameters."""

import json
import sys

import pytest
import torch
from helpers import exact_reward, lenient_reward, sums
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from trl_selfdistill.cli import eval_run
from trl_selfdistill.cli.diagnose_scores import score
from trl_selfdistill.cli.errors import UserError
from trl_selfdistill.cli.eval_store import SampleStore
from trl_selfdistill.cli.evaluation import evaluate
from trl_selfdistill.cli.judging import Judge
from trl_selfdistill.cli.main import main
from trl_selfdistill.cli.policies import thinking_modes
from trl_selfdistill.cli.sampling import Chunk, Sampling, TransformersGenerator, plan_chunks, until_end
from trl_selfdistill.record.card import scores_of

THINKS = "{{ messages[0]['content'] }}{% if enable_thinking %}<think>{% endif %}"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rows = [{"problem": f"{a}+{b}=", "answer": a + b} for a in range(3) for b in range(4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(model, *more: str) -> list[str]:
    data = ["--dataset", "sums.jsonl", "--prompt_column", "problem", "--solution_column", "answer"]
    reward = ["--reward_funcs", "tiny_policy.exact_reward", "--max_tokens", "4"]
    return ["eval", "--model", str(model), *data, *reward, "--n", "4", "--batch_size", "8", *more]


def error_of(capsys, argv: list[str]) -> str:
    assert main(argv) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def results(folder) -> dict:
    found = json.loads((folder / "results.json").read_text())
    found.pop("seconds")
    return found


def samples(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_an_evaluation_that_was_stopped_goes_on_to_the_unbroken_one(here, model_dir, monkeypatch, capsys):
    assert main(command(model_dir, "--output_dir", "unbroken")) == 0
    table = capsys.readouterr().out
    assert "pass@1" in table and "12 problems x 4 samples" in table
    run_chunk, drawn = eval_run.run_chunk, []

    def until_the_third(scene, chunk, *rest):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(chunk)
        return run_chunk(scene, chunk, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(eval_run, "run_chunk", until_the_third)
        assert main(command(model_dir, "--output_dir", "broken")) == 130
    assert "The same command goes on." in capsys.readouterr().err
    assert len(samples(here / "broken")) == 16
    with (here / "broken/samples.jsonl").open("a") as file:
        file.write('{"thinking": "default", "prob')  # what a killed process may leave behind
    assert main(command(model_dir, "--output_dir", "broken")) == 0
    assert samples(here / "broken") == samples(here / "unbroken")
    assert results(here / "broken") == results(here / "unbroken")
    monkeypatch.setattr(eval_run, "model_of", lambda arguments: pytest.fail("nothing is left to sample"))
    assert main(command(model_dir, "--output_dir", "broken")) == 0


def test_other_settings_are_not_mixed(here, model_dir, capsys):
    assert main(command(model_dir, "--output_dir", "out", "--limit", "2")) == 0
    answer = error_of(capsys, command(model_dir, "--output_dir", "out", "--limit", "2", "--seed", "1"))
    assert "out holds the samples of other settings (seed 0 is now 1)" in answer
    (here / "sums.jsonl").write_text('{"problem": "1+1=", "answer": 2}\n{"problem": "1+2=", "answer": 4}\n')
    assert "rows" in error_of(capsys, command(model_dir, "--output_dir", "out", "--limit", "2"))


def test_results_hold_settings_and_what_the_model_card_reads(here, model_dir):
    assert main(command(model_dir, "--limit", "3")) == 0
    (folder,) = (here / "eval").iterdir()
    found = json.loads((folder / "results.json").read_text())
    wanted = {"model": str(model_dir), "revision": "main", "dataset": "sums.jsonl", "n": 4, "seed": 0, "split": "train"}
    wanted |= {"temperature": 1.0, "top_p": 1.0, "max_tokens": 4, "problems": 3}
    assert wanted.items() <= found["settings"].items()
    assert {"torch", "transformers", "trl-selfdistill"} <= found["versions"].keys()
    metrics = found["results"]["default"]["metrics"]
    assert list(metrics)[:4] == ["pass@1", "pass@2", "pass@4", "length"]
    assert [name for name, _ in scores_of([found["log_entry"]])] == [
        "`eval_self_distill/correct`",
        "`eval_completions/mean_length`",
        "`eval_completions/clipped_ratio`",
    ]


def test_an_adapter_and_a_checkpoint_of_a_run(here, model_dir, capsys):
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), LoraConfig(target_modules="all-linear"))
    for layer in adapted.modules():
        if "lora_B" in dict(layer.named_children()):
            torch.nn.init.normal_(layer.lora_B["default"].weight)
    adapted.save_pretrained(here / "run/checkpoint-3")
    assert "Its newest checkpoint is run/checkpoint-3: name that." in error_of(capsys, command("run", "--limit", "2"))
    assert main(command("run/checkpoint-3", "--limit", "2", "--output_dir", "adapter")) == 0
    assert main(command(model_dir, "--limit", "2", "--output_dir", "base")) == 0
    assert [s["text"] for s in samples(here / "adapter")] != [s["text"] for s in samples(here / "base")]


@pytest.mark.parametrize(
    ("more", "answer"),
    [
        (["--use_vllm"], "vLLM is not installed"),
        (["--n", "0"], "n=0 must be at least 1"),
        (["--temperature", "0"], "temperature=0 gives the same completion n=4 times"),
        (["--split", "test"], "the data has no split 'test'. It has: train."),
        (["--limit", "0"], "--limit 0 must be at least 1"),
        (["--dtype", "float33"], "--dtype 'float33' is neither auto nor a type of torch"),
        (["--thinking", "maybe"], "invalid choice: 'maybe'"),
        (["--correctness_reward", "other"], "correctness_reward='other' is not among the reward functions"),
    ],
)
def test_mistakes(here, model_dir, capsys, more, answer):
    assert answer in error_of(capsys, command(model_dir, *more))


def test_thinking_modes(tokenizer):
    prompt = [[{"role": "user", "content": "1+1="}]]
    assert thinking_modes(tokenizer, prompt, None) == ({"default": {}}, [])
    modes, notes = thinking_modes(tokenizer, prompt, "both")
    assert modes == {"default": {}} and "does not know enable_thinking" in notes[0]
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = THINKS
        modes, notes = thinking_modes(tokenizer, prompt, "both")
        assert modes == {"on": {"enable_thinking": True}, "off": {"enable_thinking": False}} and not notes
        assert list(thinking_modes(tokenizer, prompt, "on")[0]) == ["on"]
    finally:
        tokenizer.chat_template = before


def test_chunks_hold_whole_problems_or_a_part_of_one():
    assert plan_chunks(3, Sampling(n=2, batch_size=5)) == [Chunk((0, 1), 0, 2), Chunk((2,), 0, 2)]
    assert plan_chunks(2, Sampling(n=3, batch_size=2)) == [
        Chunk((p,), first, last) for p in (0, 1) for first, last in ((0, 2), (2, 3))
    ]
    seeds = [chunk.seed(Sampling(), mode) for chunk in plan_chunks(50, Sampling(n=32)) for mode in ("on", "off")]
    assert len(set(seeds)) == 100
    assert until_end([5, 2, 0, 0], {2}) == [5, 2] and until_end([5, 6], {2}) == [5, 6]


def test_evaluate_leaves_mode_and_random_state_alone_and_is_the_mean_reward(model, tokenizer):
    model.train()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    sampling = Sampling(n=3, max_tokens=4, batch_size=64)
    found = evaluate(model, tokenizer, sums().select(range(8)), lenient_reward, sampling)
    assert model.training and torch.equal(before, torch.random.get_rng_state())
    assert found == evaluate(model, tokenizer, sums().select(range(8)), lenient_reward, sampling)
    generator = TransformersGenerator(model, tokenizer, sampling)
    texts = [
        tokenizer.decode(ids, skip_special_tokens=True)
        for chunk in plan_chunks(8, sampling)
        for ids in generator(
            [tokenizer(f"<|user|>0+{p}=<|end|><|assistant|>")["input_ids"] for p, _ in chunk.rows],
            chunk.seed(sampling, "default"),
        )
    ]
    rewards = lenient_reward([[{"content": text}] for text in texts])
    assert found["pass@1"].value == pytest.approx(sum(rewards) / len(rewards))


def test_the_judge():
    async def later(completions, **kwargs):
        return [None, 1.0]

    rows = [{"prompt": "1+1=", "solution": "2"}] * 2
    judge = Judge([later, exact_reward], ["later", "exact_reward"])
    values = judge.values(rows, [[{"content": "2"}], [{"content": "3"}]], [[1], [1]])
    assert judge.judge(values) == [True, False]
    assert Judge([later]).judge(values[:, :1]) == [None, True]
    with pytest.raises(ValueError, match="gave 2 rewards for 1"):
        Judge([later]).values(rows[:1], ["2"], [[1]])


def test_a_folder_of_other_settings_names_them(tmp_path):
    SampleStore(tmp_path, {"seed": 0})
    SampleStore(tmp_path, {"seed": 0})
    with pytest.raises(UserError, match="seed 0 is now 1"):
        SampleStore(tmp_path, {"seed": 1})


def test_scores_are_those_of_the_model(model, tokenizer):
    """u, entropy and divergence of `diagnose` against log-softmax of the model's own logits."""
    student, teacher = ([5, 6, 7], [8, 9, 5, 6, 7])
    completions = [[40, 41, 42], [43], []]
    tables = score(
        model,
        tokenizer,
        [student] * 3,
        {"none": [student] * 3, "solution": [None, teacher, teacher]},
        completions,
        temperature=0.7,
        batch_size=2,
    )
    assert torch.equal(tables["none"].log_ratio, torch.zeros(4))
    assert tables["none"].row.tolist() == [0, 0, 0, 1] and tables["solution"].row.tolist() == [1]
    with torch.no_grad():
        s, t = (model(torch.tensor([ids])).logits[0, -1].div(0.7).log_softmax(-1) for ids in (student, teacher))
    table = tables["solution"]
    assert table.student_logps.item() == pytest.approx(s[43].item(), abs=1e-4)
    assert table.teacher_logps.item() == pytest.approx(t[43].item(), abs=1e-4)
    assert table.teacher_entropy.item() == pytest.approx(-(t.exp() * t).sum().item(), abs=1e-4)
    assert table.divergence.item() == pytest.approx((t.exp() * (t - s)).sum().item(), abs=1e-4)


@pytest.mark.slow
def test_a_diagnosis(here, model_dir, capsys):
    argv = ["diagnose", *command(model_dir)[1:], "--teacher_template", "[{context}]{prompt}", "--output_dir", "out"]
    assert main(argv) == 0
    shown = " ".join(capsys.readouterr().out.split())  # lines are broken at the width of the terminal
    assert "Advice (rule: " in shown and "the chat template does not know enable_thinking" in shown
    found = json.loads((here / "out/diagnosis.json").read_text())
    contexts = found["contexts"]
    assert {"none", "solution", "other"} <= contexts.keys()
    assert contexts["none"]["log_ratio"]["other"]["value"] == pytest.approx(0, abs=1e-5)
    assert contexts["none"]["divergence"] == pytest.approx(0, abs=1e-5)
    assert contexts["solution"]["divergence"] > 1e-3
    assert found["advice"]["sentence"] in shown
    assert (here / "out/diagnosis.png").read_bytes().startswith(b"\x89PNG")


def test_help_of_both_needs_no_torch():
    from helpers import run_script

    code = (
        "import sys\nfrom trl_selfdistill.cli.main import main\n"
        "for command in ('eval', 'diagnose'):\n"
        "    try: main([command, '--help'])\n"
        "    except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'trl', 'transformers', 'datasets', 'rich', 'numpy'} & set(sys.modules)"
    )
    assert "--teacher_template" in run_script("-c", code)
