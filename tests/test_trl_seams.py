"""Every name of TRL that the package relies on. `make test-trl` runs this file on each supported minor."""

import inspect
import os
from importlib.metadata import version

import torch
import trl
from helpers import build, settings
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from trl_selfdistill._compat import check_trl


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_version_under_test():
    check_trl()
    assert version("trl") == trl.__version__
    assert trl.__version__ == os.environ.get("EXPECTED_TRL", trl.__version__)


def test_signatures_of_overridden_methods():
    assert parameters(GRPOTrainer._generate_and_score_completions) == ["self", "inputs"]
    assert parameters(GRPOTrainer._calculate_rewards) == [
        "self",
        "inputs",
        "prompts",
        "completions",
        "completion_ids_list",
    ]
    assert parameters(GRPOTrainer._compute_loss) == ["self", "model", "inputs"]
    assert parameters(GRPOTrainer._save_checkpoint) == ["self", "model", "trial"]
    assert parameters(GRPOTrainer._load_optimizer_and_scheduler) == ["self", "checkpoint"]
    assert parameters(GRPOTrainer._set_signature_columns_if_needed) == ["self"]


def test_signature_of_the_tokenizing_method_that_the_dry_run_calls():
    assert parameters(GRPOTrainer._tokenize_prompts) == ["self", "prompts"]


def test_signature_of_the_trainer():
    assert parameters(GRPOTrainer.__init__)[1:] == [
        "model",
        "reward_funcs",
        "args",
        "train_dataset",
        "eval_dataset",
        "processing_class",
        "reward_processing_classes",
        "callbacks",
        "optimizers",
        "quantization_config",
        "peft_config",
        "tools",
        "rollout_func",
        "environment_factory",
    ]


def test_keywords_of_the_log_probability_method():
    needed = {
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "pixel_values",
        "image_grid_thw",
        "num_images",
        "pixel_attention_mask",
        "spatial_shapes",
        "num_tiles",
        "image_sizes",
        "token_type_ids",
        "mm_token_type_ids",
        "image_position_ids",
    }
    assert needed <= set(parameters(GRPOTrainer._get_per_token_logps_and_entropies))


def test_attributes_and_batch_keys(model_dir, tokenizer, tmp_path):
    trainer = build(GRPOTrainer, GRPOConfig(**settings(tmp_path)), str(model_dir), tokenizer)
    for name in (
        "accelerator",
        "chat_template",
        "chat_template_kwargs",
        "environment_factories",
        "environments",
        "eos_token_ids",
        "num_generations",
        "num_generations_eval",
        "reward_func_names",
        "temperature",
        "tools",
        "_is_vlm",
        "_metrics",
        "_tokenizer",
    ):
        assert name in vars(trainer), name
    rows = [trainer.train_dataset[i // 4] for i in range(8)]
    batch = trainer._generate_and_score_completions(rows)
    shapes = {key: tuple(value.shape) for key, value in batch.items()}
    t = shapes["completion_ids"][1]
    assert shapes["prompt_ids"] == shapes["prompt_mask"]
    assert shapes["completion_mask"] == (8, t)
    assert shapes["advantages"] == (8,)
    assert shapes["num_items_in_batch"] == ()


def test_the_log_probability_method_reads_what_a_stand_in_returns(model_dir, tokenizer, tmp_path):
    """It calls the model with `labels` and `fused_lm_head=True` and cuts `log_probs` and `entropy` from the right."""
    import torch

    trainer = build(GRPOTrainer, GRPOConfig(**settings(tmp_path)), str(model_dir), tokenizer)
    calls = []

    class Answer:
        log_probs = torch.arange(6.0).repeat(1, 1)
        entropy = -torch.arange(6.0).repeat(1, 1)

    def stand_in(**kwargs):
        calls.append(kwargs)
        return Answer

    ids = torch.ones((2, 7), dtype=torch.long)
    out = trainer._get_per_token_logps_and_entropies(
        model=stand_in, input_ids=ids, attention_mask=ids, logits_to_keep=3, batch_size=1, compute_entropy=True
    )
    assert out[0].tolist() == [[3.0, 4.0, 5.0]] * 2
    assert out[1].tolist() == [[-3.0, -4.0, -5.0]] * 2
    assert [set(call) for call in calls] == [{"input_ids", "attention_mask", "labels", "fused_lm_head"}] * 2
    assert (calls[0]["labels"] != -100).sum() == 3


def test_the_loss_takes_token_advantages(model_dir, tokenizer, tmp_path):
    import torch

    trainer = build(GRPOTrainer, GRPOConfig(**settings(tmp_path)), str(model_dir), tokenizer)
    trainer.current_gradient_accumulation_steps = 1
    rows = [trainer.train_dataset[i // 4] for i in range(8)]
    batch = trainer._generate_and_score_completions(rows)
    plain = trainer._compute_loss(trainer.model, batch)
    batch["advantages"] = batch["advantages"].unsqueeze(1).expand_as(batch["completion_ids"])
    assert torch.equal(trainer._compute_loss(trainer.model, batch), plain)


def test_the_loss_reads_the_advantages_after_it_asked_for_log_probs(model_dir, tokenizer, tmp_path):
    """Token signals are shaped in between."""
    trainer = build(GRPOTrainer, GRPOConfig(**settings(tmp_path)), str(model_dir), tokenizer)
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions([trainer.train_dataset[i // 4] for i in range(8)])
    order, ask = [], trainer._get_per_token_logps_and_entropies

    class Watched(dict):
        def __getitem__(self, key):
            order.append(key)
            return super().__getitem__(key)

    def asking(*args, **kwargs):
        order.append("log-probs")
        return ask(*args, **kwargs)

    trainer._get_per_token_logps_and_entropies = asking
    trainer._compute_loss(trainer.model, Watched(batch))
    assert order.count("log-probs") == 1
    assert order.index("log-probs") < order.index("advantages")


def test_the_order_of_the_prompts_comes_from_a_generator_that_draws_it_once_an_epoch():
    """`trainer/epochs.py` draws the orders that a resumed run has behind it."""
    sampler, twin = (RepeatSampler(range(9), 1, batch_size=3, seed=7) for _ in range(2))
    first, second = list(sampler), list(sampler)
    assert first != second
    torch.randperm(twin.num_samples, generator=twin.generator)
    assert list(twin) == second
