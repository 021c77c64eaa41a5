"""`output_head` against the logits that transformers' own models return."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import linear

from trl_selfdistill.ops import linear_logps, output_head
from trl_selfdistill.ops.head import logit_settings

SMALL = {
    "vocab_size": 37, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = {
    "LlamaConfig": {},
    "Qwen3Config": {"tie_word_embeddings": True},
    "CohereConfig": {"logit_scale": 0.25},
    "GraniteConfig": {"logits_scaling": 3.0},
    "Gemma2Config": {"final_logit_softcapping": 0.5},
    "MiniCPM3Config": {
        "dim_model_base": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4,
        "v_head_dim": 4, "head_dim": 4,
    },
    "HyperCLOVAXConfig": {"logits_scaling": 3.0},
    "FalconH1Config": {
        "lm_head_multiplier": 0.3, "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4,
        "mamba_chunk_size": 8,
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of the models
@pytest.mark.parametrize("name", MODELS)
def test_head_reproduces_the_logits(name):
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    torch.manual_seed(0)
    config = getattr(transformers, name)(**SMALL | MODELS[name])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad(), output_head(model) as head:
        expected = model(tokens).logits[0]
        hidden = model.model(tokens).last_hidden_state[0]
        logits = linear(hidden, head.weight, head.bias) * head.logit_scale
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert head.weight is model.get_output_embeddings().weight


def config(**entries):
    own = SimpleNamespace(**{"model_type": "x", **entries})
    own.get_text_config = lambda: own
    return own


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, (1.0, None)),
        ({"logit_scale": None, "final_logit_softcapping": None}, (1.0, None)),
        ({"logits_soft_cap": 30.0}, (1.0, 30.0)),
        ({"output_multiplier": 0.5, "final_logit_softcapping": 20}, (0.5, 20.0)),
        ({"logits_mup_width_multiplier": 24.0}, (1 / 24, None)),
        ({"model_type": "mpt", "logit_scale": "inv_sqrt_d_model"}, (1.0, None)),
    ],
)
def test_logit_settings(entries, expected):
    assert logit_settings(config(**entries)) == pytest.approx(expected)


def model_with(head, **entries):
    return SimpleNamespace(get_output_embeddings=lambda: head, config=config(**entries))


def test_adapted_head_is_refused():
    import peft

    base: Any = torch.nn.Sequential()
    base.add_module("lm_head", torch.nn.Linear(4, 7))
    wrapped: Any = peft.get_peft_model(base, peft.LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="target_modules"), output_head(model_with(wrapped.base_model.model.lm_head)):
        pass


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (model_with(None), "no output embeddings"),
        (model_with(torch.nn.Linear(3, 5), unpadded_vocab_size=4), "unpadded_vocab_size"),
        (model_with(SimpleNamespace(weight=torch.zeros(8, 1, dtype=torch.uint8))), "quantisation"),
        (model_with(SimpleNamespace(weight=torch.zeros(0))), "floating-point"),
    ],
)
def test_unusable_heads_are_refused(model, reason):
    with pytest.raises(ValueError, match=reason), output_head(model):
        pass


def test_fsdp2_head_is_gathered_with_gradient(tmp_path):
    """One process stands in for the mesh: the gather is differentiable and the gradient is a DTensor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        module: Any = torch.nn.Linear(4, 7, bias=False)
        module.weight = torch.nn.Parameter(distribute_tensor(module.weight.data, mesh, [Shard(0)]))
        with output_head(model_with(module)) as head:
            assert not isinstance(head.weight, DTensor)
            head.weight.square().sum().backward()
        assert isinstance(module.weight.grad, DTensor)
        weight: Any = module.weight
        torch.testing.assert_close(weight.grad.full_tensor(), 2 * weight.full_tensor().detach())
        # Logits made again in the backward pass, after the block.
        hidden, targets = torch.randn(5, 4), torch.arange(5)
        module.weight.grad = None
        with output_head(model_with(module)) as head:
            logps, _ = linear_logps(hidden, head.weight, targets)
        logps.sum().backward()
        plain = weight.full_tensor().detach().requires_grad_()
        linear_logps(hidden, plain, targets)[0].sum().backward()
        torch.testing.assert_close(weight.grad.full_tensor(), plain.grad)
    finally:
        torch.distributed.destroy_process_group()


def fake_deepspeed(monkeypatch, gathered_parameters) -> SimpleNamespace:
    """DeepSpeed's interface with a stand-in for `GatheredParameters`. Returns its states of a parameter."""
    import sys

    status = SimpleNamespace(AVAILABLE=1, NOT_AVAILABLE=2)
    for name, module in {
        "deepspeed": SimpleNamespace(zero=SimpleNamespace(GatheredParameters=gathered_parameters)),
        "deepspeed.runtime": SimpleNamespace(),
        "deepspeed.runtime.zero": SimpleNamespace(),
        "deepspeed.runtime.zero.partition_parameters": SimpleNamespace(ZeroParamStatus=status),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return status


def test_zero3_gathers_only_what_is_partitioned(monkeypatch):
    asked = []
    status = fake_deepspeed(monkeypatch, lambda params: asked.append(params) or nullcontext())
    module: Any = torch.nn.Linear(4, 7)
    module.weight.ds_id, module.weight.ds_status = 0, status.NOT_AVAILABLE
    module.bias.ds_id, module.bias.ds_status = 1, status.AVAILABLE
    with output_head(model_with(module)) as head:
        assert head.weight is module.weight
    assert len(asked) == 1
    assert asked[0][0] is module.weight and len(asked[0]) == 1


def test_zero3_head_is_gathered_again_in_the_backward_pass(monkeypatch):
    """At the end of the block the parameter is partitioned: its memory is gone until the backward pass asks for it."""
    module: Any = torch.nn.Linear(4, 7)
    whole = {p: p.detach().clone() for p in module.parameters()}
    count = 0

    @contextmanager
    def gathered(params):
        nonlocal count
        count += 1
        for p in params:
            p.data, p.ds_status = whole[p].clone(), status.AVAILABLE
        yield
        for p in params:
            p.data, p.ds_status = torch.empty(0), status.NOT_AVAILABLE

    status = fake_deepspeed(monkeypatch, gathered)
    for i, p in enumerate(module.parameters()):
        p.ds_id, p.ds_status, p.data = i, status.NOT_AVAILABLE, torch.empty(0)
    hidden, targets = torch.randn(5, 4, requires_grad=True), torch.arange(5)
    with output_head(model_with(module)) as head:
        logps, entropy = linear_logps(hidden, head.weight, targets, bias=head.bias)
    assert count == 1 and module.weight.numel() == 0
    ours = torch.autograd.grad((logps + 0.1 * entropy).sum(), (hidden, module.weight, module.bias))
    assert count == 2 and module.weight.numel() == 0
    plain = [t.clone().requires_grad_() for t in (hidden.detach(), *whole.values())]
    logps, entropy = linear_logps(plain[0], plain[1], targets, bias=plain[2])
    torch.testing.assert_close(ours, torch.autograd.grad((logps + 0.1 * entropy).sum(), plain))
