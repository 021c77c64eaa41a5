"""Every recipe for Qwen3 makes its trainer on a two-layer Qwen3 and trains a step, with all its settings but sizes."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers import ROOT
from tiny_policy import build_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.cache_utils import Cache

import trl_selfdistill
from trl_selfdistill.cli.commands import ALGORITHMS
from trl_selfdistill.cli.dry_run import run_memory
from trl_selfdistill.cli.train import build

sys.path.insert(0, str(ROOT / "benchmarks"))
from recipe_memory import BYTES, RECIPES, Shape, algorithm_of, read, recipe_memory

PARAMS = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name.startswith("qwen3"))
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
# The widths that the CPU kernel of bitsandbytes can do are multiples of 64.
SIZES = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
LONG = {"intermediate_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 4096}


def qwen3_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, with the special tokens of Qwen3 and a chat template that knows thinking as Qwen3's does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    for token in SPECIAL:  # in Qwen3, too, the marks of thinking are tokens that are no special ones
        tokenizer.add_tokens([AddedToken(token, special="think" not in token, normalized=False)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two models, with a head of its own and without, and problems in the columns of both datasets."""
    folder = tmp_path_factory.mktemp("qwen3")
    tokenizer = qwen3_tokenizer()
    for name, tied in (("tied", True), ("untied", False)):
        build_model(tokenizer, **SIZES, **LONG, tie_word_embeddings=tied).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [{"prompt": f"What is {a}+1?", "problem": f"What is {a}+1?", "solution": str(a + 1)} for a in range(40)]
    Dataset.from_list(rows).to_json(folder / "problems.jsonl")
    return folder


def scripted(trainer, thinks):
    """Let every other rollout be right: a random model never is, and its groups would have no teacher."""

    def generate(prompt_ids, images, fields, num_generations, **kwargs):
        texts = [trainer._tokenizer.decode(ids) for ids in prompt_ids]
        answers = [int(text.split("What is ")[1].split("+")[0]) + 1 - i % 2 for i, text in enumerate(texts)]
        thought = "<think>\nso\n</think>\n\n" if thinks else ""
        completions = [f"{thought}It is \\boxed{{{answer}}}<|im_end|>" for answer in answers]
        seen.extend(texts)
        return [trainer._tokenizer(text)["input_ids"] for text in completions], None

    seen: list[str] = []
    trainer._generate_single_turn = generate
    return seen


def make(recipe, folder, out):
    """(trainer, settings) of a recipe: its own, but for sizes."""
    name = algorithm_of(recipe)
    sizes = {
        "model_name_or_path": folder / ("untied" if recipe.parent.name == "qwen3-8b" else "tied"),
        "dataset_name": folder / "problems.jsonl",
        "test_split_size": 0.1,
        "output_dir": out,
        "max_completion_length": 48,
        "per_device_train_batch_size": 4 if name == "opsd" else 8,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 1,
        "max_steps": 1,
        "save_strategy": "no",
        "use_cpu": "true",
        "disable_tqdm": "true",
    }
    arguments = read(recipe, *(text for key, value in sizes.items() for text in (f"--{key}", str(value))))
    return build(getattr(trl_selfdistill, ALGORITHMS[name]), arguments), arguments


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is missing")
@pytest.mark.parametrize("recipe", PARAMS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_trains_a_step(recipe, folder, tmp_path):
    trainer, arguments = make(recipe, folder, tmp_path)
    check_parts(trainer, recipe, arguments)
    seen = scripted(trainer, "reasoning_accuracy_reward" in arguments.run.reward_funcs)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    (step,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert math.isfinite(step["loss"])
    assert step["grad_norm"] > 0
    assert step["reward"] == 0.5
    assert step["self_distill/has_teacher"] == 1
    assert step["completions/clipped_ratio"] == 0
    assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before)
    assert "eval_reward" in trainer.state.log_history[0]
    thinks = arguments.training.chat_template_kwargs["enable_thinking"]
    assert all(text.endswith(EMPTY_THOUGHT) is not thinks for text in seen)


def check_parts(trainer, recipe, arguments):
    """The policy, the teacher and the estimate of memory are those of the recipe."""
    policy, full = trainer.model, recipe.stem.endswith("full")
    projection = policy.model.layers[0].mlp.up_proj if full else policy.base_model.model.model.layers[0].mlp.up_proj
    assert (projection.weight if full else projection.base_layer.weight).dtype == (
        torch.float32 if full else torch.uint8
    )
    kinds = {"opsd_qlora": "AdapterTeacher", "opsd_full": "FrozenCopyTeacher"}
    sharded = recipe.stem == "opsd_full" and "fsdp2" in recipe.read_text()
    assert type(trainer.teacher).__name__ == ("EMATeacher" if sharded else kinds.get(recipe.stem, "LiveTeacher"))
    config = policy.config
    shape = Shape(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.vocab_size,
        tied=config.tie_word_embeddings,
    )
    assert recipe_memory(shape, arguments, processes=1, device="cpu") == run_memory(trainer)


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is missing")
@pytest.mark.parametrize("kind", ["qlora", "full"])
def test_the_precision_of_the_cache(kind, folder, tmp_path, monkeypatch):
    trainer, arguments = make(RECIPES / f"qwen3-1.7b/rlrt_{kind}.yaml", folder, tmp_path)
    generate, update, seen = trainer._generate_single_turn, Cache.update, set()

    def recording(cache, *args, **kwargs):
        keys, values = update(cache, *args, **kwargs)
        seen.add((keys.element_size(), values.element_size()))
        assert (keys.shape[1], keys.shape[3]) == (2, 64)
        return keys, values

    def generating(*args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(Cache, "update", recording)
            return generate(*args, **kwargs)

    trainer._generate_single_turn = generating
    trainer.train()
    assert seen == {(BYTES[arguments.model.dtype], BYTES[arguments.model.dtype])}
