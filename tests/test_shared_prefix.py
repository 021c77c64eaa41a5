"""Completions scored from the prompt's cache: the hidden states are those of the plain path."""

import re
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny_vlm import tiny_llava, tiny_qwen2_vl
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from trl_selfdistill.scoring.forward import inside_forward
from trl_selfdistill.scoring.prefix_cache import PromptCache, supports_shared_prefix
from trl_selfdistill.scoring.shared_prefix import Plan, make_plan, run, shared_hidden_states
from trl_selfdistill.scoring.tokens import positions

VOCAB = 60
WINDOW = 6  # shorter than most prompts here
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}
FAMILIES = {
    "Qwen3": {"head_dim": 16},
    "Qwen3Moe": EXPERTS,
    "Llama": {},
    "Granite": {},
    "Cohere": {},
    "GPT2": {},
    "Mistral": {"sliding_window": WINDOW},
    "Gemma2": {"head_dim": 16, "sliding_window": WINDOW},
    "Gemma3Text": {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "Qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    "GptOss": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    "Falcon": {},
    "Bloom": {},  # no position_ids
}
EAGER_ONLY = ("Gemma2", "GptOss", "Bloom")
CASES = [(name, kind) for name in FAMILIES for kind in ("sdpa", "eager") if kind == "eager" or name not in EAGER_ONLY]


def config_of(family: str, **special: Any) -> Any:
    shape = dict(SHAPE)
    if family == "GPT2":
        shape.pop("num_key_value_heads")
    return getattr(transformers, f"{family}Config")(**{**shape, **FAMILIES.get(family, {}), **special})


def model_of(family: str, attention: str = "eager", **special: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family, **special), attn_implementation=attention).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:  # fresh weights are so small that attention hardly counts
            parameter.data.mul_(12)
    return model


def texts(prompts: list[int], completions: list[int], followed: list[int] | None = None, seed: int = 0) -> list[Any]:
    """Random tokens: lengths of the distinct prompts and of the completions, and the prompt of each completion."""
    random = torch.Generator().manual_seed(seed)
    followed = followed or [row % len(prompts) for row in range(len(completions))]
    width, longest = max(prompts) + 2, max(completions) + 3
    ids = torch.randint(2, VOCAB, (len(prompts), width), generator=random)
    mask = (torch.arange(width) >= width - torch.tensor(prompts).unsqueeze(1)).long()
    own = torch.randint(2, VOCAB, (len(completions), longest), generator=random)
    written = (torch.arange(longest) < torch.tensor(completions).unsqueeze(1)).long()
    # What stands under the masks differs from row to row and must not matter.
    prompt_ids = torch.where(mask[followed].bool(), ids[followed], own[:, :1])
    return [prompt_ids, mask[followed], own, written]


def forward_of(model: Any, calls: list[Any] | None = None) -> Any:
    def forward(**inputs: Any) -> Any:
        if calls is not None:
            calls.append(inputs)
        return model.base_model(
            **inputs, **positions(model, inputs["attention_mask"], width=inputs["input_ids"].size(1))
        )

    return forward


@torch.no_grad()
def plain(model: Any, prompt_ids: Any, prompt_mask: Any, completion_ids: Any, completion_mask: Any) -> torch.Tensor:
    ids = torch.cat([prompt_ids, completion_ids], dim=1)
    mask = torch.cat([prompt_mask, completion_mask], dim=1)
    hidden = forward_of(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden[:, prompt_ids.size(1) - 1 : -1]


@torch.no_grad()
def shared(model: Any, batch: list[Any], *, batch_size: int = 4, **kwargs: Any) -> torch.Tensor:
    return shared_hidden_states(make_plan(*batch, batch_size=batch_size), forward_of(model), **kwargs)


def assert_same(model: Any, batch: list[Any], *, atol: float = 1e-5, **kwargs: Any) -> None:
    expected, got, written = plain(model, *batch), shared(model, batch, **kwargs), batch[-1].bool()
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got[written], expected[written], atol=atol, rtol=0)


# ---- equal to the plain path -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "attention"), CASES)
def test_families(family, attention):
    model = model_of(family, attention)
    assert supports_shared_prefix(model) is None
    batch = texts([20, 3, 11], [5, 1, 7, 9, 2, 4, 0, 8, 6])
    assert_same(model, batch, batch_size=4)
    others = [(batch[0] + 1) % VOCAB, *batch[1:]]
    written = batch[-1].bool()
    assert (shared(model, others) - shared(model, batch))[written].abs().amax(-1).min() > 1e-3  # the prompt counts


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
@pytest.mark.parametrize(("prompts", "rows"), [(1, 1), (1, 8), (8, 8), (3, 9)])
def test_groups_and_sizes(prompts, rows, batch_size):
    batch = texts([4 + 3 * i for i in range(prompts)], [1 + (5 * i) % 9 for i in range(rows)])
    assert_same(model_of("Qwen3", "sdpa"), batch, batch_size=batch_size)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prompt", [2, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_windows_around_the_length_of_the_prompt(prompt, attention):
    assert_same(model_of("Mistral", attention), texts([prompt, max(1, prompt - 3)], [9, 9, 1, 4]))
    assert_same(model_of("Gemma3Text", attention), texts([prompt], [9, 2, 3]))


@pytest.fixture(scope="module")
def property_model():
    return model_of("Gemma3Text", "sdpa")


@settings(deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), batch_size=st.integers(1, 9), seed=st.integers(0, 99))
def test_any_batch(property_model, data, batch_size, seed):
    prompts = data.draw(st.lists(st.integers(1, 15), min_size=1, max_size=4))
    completions = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    followed = data.draw(
        st.lists(st.integers(0, len(prompts) - 1), min_size=len(completions), max_size=len(completions))
    )
    batch = texts(prompts, completions, followed, seed=seed)
    plan = make_plan(*batch, batch_size=batch_size)
    met = sorted(row for block in plan.blocks for micro in block.batches for row in micro.rows)
    assert met == list(range(len(completions)))
    assert all(len(micro.rows) <= batch_size for block in plan.blocks for micro in block.batches)
    assert_same(property_model, batch, batch_size=batch_size)


def test_holes_in_a_completion():
    """Tokens of a tool, which the mask may leave out, are seen by nobody and counted nowhere, as on the plain path."""
    batch = texts([9, 5], [8, 8, 6, 3])
    batch[-1][0, 2:5] = 0
    assert_same(model_of("Qwen3"), batch)


@pytest.mark.parametrize("adapter", [LoraConfig, IA3Config])
def test_adapters_on_and_off(adapter):
    base, batch = model_of("Llama", "sdpa"), texts([12], [7, 3, 5])
    before = plain(base, *batch)
    policy = get_peft_model(base, adapter(init_lora_weights=False, target_modules="all-linear") if adapter is LoraConfig
                            else adapter(init_ia3_weights=False, target_modules=["k_proj", "v_proj"],
                                         feedforward_modules=[])).eval()  # fmt: skip
    assert supports_shared_prefix(policy) is None
    assert_same(base, batch)
    written = batch[-1].bool()
    assert (shared(base, batch) - before)[written].abs().max() > 1e-2
    with policy.disable_adapter():
        torch.testing.assert_close(shared(base, batch)[written], before[written], atol=1e-5, rtol=0)


def test_inside_the_forward_of_a_wrapper():
    base, batch = model_of("Llama"), texts([12], [7, 3, 5])
    policy = get_peft_model(base, LoraConfig(target_modules="all-linear")).eval()
    plan = make_plan(*batch, batch_size=2)
    got = inside_forward(
        policy, base, lambda input_ids: shared_hidden_states(plan, forward_of(base)), input_ids=batch[0]
    )
    torch.testing.assert_close(got[batch[-1].bool()], plain(base, *batch)[batch[-1].bool()], atol=1e-5, rtol=0)


def test_dropout_is_off_in_evaluation_mode():
    special = {"attention_dropout": 0.5}
    assert_same(model_of("Llama", **special), texts([12], [7, 3, 5]))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    """In evaluation mode it changes nothing. In training mode transformers keeps no cache, which is refused."""
    model, batch = model_of("Qwen3"), texts([12], [7, 3, 5])
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.config.use_cache = False  # as TRL sets it
    assert_same(model, batch)
    model.train()
    with pytest.raises(ValueError, match="evaluation mode"):
        shared(model, batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_precisions(dtype):
    model = model_of("Qwen3", "sdpa").to(dtype)
    assert_same(model, texts([12, 7], [7, 3, 5, 4]), atol=1e-12 if dtype == torch.float64 else 0.1)


# ---- what is run -----------------------------------------------------------------------------------------------------


def test_each_prompt_is_encoded_once_and_without_its_padding():
    model, calls = model_of("Llama", "sdpa"), []
    prompts, completions = [20, 9, 9, 4], [1 + row % 7 for row in range(16)]
    batch = texts(prompts, completions)
    plan = make_plan(*batch, batch_size=2)
    with torch.no_grad():
        seen = list(run(plan, forward_of(model, calls)))
    first = [call for call in calls if call["past_key_values"] is None]
    rest = [call for call in calls if call["past_key_values"] is not None]
    # Two prompts per forward, of similar length: 4 and 9 tokens, 9 and 20.
    assert [tuple(call["input_ids"].shape) for call in first] == [(2, 9), (2, 20)]
    assert all(call["input_ids"].size(0) <= 2 for call in rest)
    padded = sum(call["input_ids"].numel() for call in rest)
    assert padded <= sum(length - 1 for length in completions) + 2 * 7  # long ones go together
    assert len(calls) == plan.forwards
    assert sorted(row for rows, _ in seen for row in rows) == list(range(16))
    for rows, hidden in seen:
        assert hidden.size(1) == max(completions[row] for row in rows)


def test_completions_of_one_token_need_the_prompt_alone():
    model, calls = model_of("Llama"), []
    batch = texts([6], [1, 1, 0])
    plan = make_plan(*batch, batch_size=8)
    with torch.no_grad():
        shared_hidden_states(plan, forward_of(model, calls))
    assert len(calls) == plan.forwards == 1
    assert_same(model, batch)


def test_the_cache_is_expanded_to_no_rows():
    model, calls = model_of("Gemma3Text"), []
    batch = texts([20], [7] * 8)
    with torch.no_grad():
        list(run(make_plan(*batch, batch_size=4), forward_of(model, calls)))
    for call in calls[1:]:
        assert isinstance(call["past_key_values"], PromptCache)
        assert {layer.keys.size(0) for layer in call["past_key_values"].layers} == {1}
        assert [layer.keys.size(2) for layer in call["past_key_values"].layers] == [WINDOW - 1, 20] * 2


def test_processes_can_agree_on_a_number_of_forwards():
    model, calls = model_of("Llama"), []
    batch = texts([6, 9], [4, 3, 2])
    plan = make_plan(*batch, batch_size=1)
    assert plan.forwards == 2 + 3
    with torch.no_grad():
        got = shared_hidden_states(plan, forward_of(model, calls), forwards=8)
        none = list(run(Plan(plan.texts, []), forward_of(model, calls), forwards=2))
    assert len(calls) == 8 + 2
    assert not none
    torch.testing.assert_close(got, shared(model, batch, batch_size=1))
    with pytest.raises(ValueError, match="at least the plan's 5"):
        shared_hidden_states(plan, forward_of(model), forwards=4)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        make_plan(*texts([6], [4]), batch_size=0)


def test_nothing_to_score_is_refused():
    plan = make_plan(*texts([6], [4]), batch_size=1)
    with pytest.raises(ValueError, match="at least one row"):
        shared_hidden_states(Plan(plan.texts, []), forward_of(model_of("Llama")))


# ---- which models ----------------------------------------------------------------------------------------------------

HYBRID = ["linear_attention", "full_attention"] * 2
LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 16}
UNSUPPORTED = {
    "Mamba": ({"state_size": 4}, "no keys and values"),
    "Mamba2": ({"num_heads": 4, "head_dim": 16}, "no keys and values|linear_attention"),
    "Jamba": ({}, "linear_attention|mamba"),
    "Qwen3Next": ({**EXPERTS, "layer_types": HYBRID}, "linear_attention"),
    "Lfm2": ({"layer_types": ["conv", "full_attention"] * 2}, "conv"),
    "RecurrentGemma": ({}, "no keys and values|linear_attention|recurrent"),
    "Llama4Text": ({"attention_chunk_size": WINDOW, "head_dim": 16, "num_local_experts": 2}, "chunked_attention"),
    "Gemma3nText": ({"num_hidden_layers": 20}, "DummyLayer|share their keys"),
    "Phi3": ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **LONG}}, "rotary positions"),
    "Llama": ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rotary positions"),
}


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_models_that_go_the_plain_way(family):
    special, reason = UNSUPPORTED[family]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(family, **special))
    why = supports_shared_prefix(model)
    assert why
    assert re.search(reason, why)


def test_one_kind_of_rotary_positions_per_layer_type():
    scaled = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    rope = {"full_attention": scaled, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of("Gemma3Text", rope_parameters=rope))
    assert "rotary positions" in (supports_shared_prefix(model) or "")


def test_encoder_decoders_go_the_plain_way():
    config = transformers.T5Config(vocab_size=VOCAB, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2)
    assert "encoder-decoder" in (supports_shared_prefix(AutoModelForSeq2SeqLM.from_config(config)) or "")


@pytest.mark.parametrize("build", [tiny_llava, tiny_qwen2_vl])
def test_models_with_images_go_the_plain_way(build):
    assert "images" in (supports_shared_prefix(build()[0]) or "")


@pytest.mark.parametrize("config_class", [PromptTuningConfig, PrefixTuningConfig])
def test_prompt_learning_goes_the_plain_way(config_class):
    policy = get_peft_model(model_of("Llama"), config_class(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert "in front of the prompt" in (supports_shared_prefix(policy) or "")


def test_another_cache_than_promised_is_refused():
    with pytest.raises(ValueError, match="returned NoneType"):
        PromptCache(None, [0])
    with pytest.raises(ValueError, match="returned StaticLayer"):
        static = transformers.DynamicCache()
        static.layers = transformers.StaticCache(config=config_of("Llama"), max_cache_len=4).layers
        PromptCache(static, [0])
