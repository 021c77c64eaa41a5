"""The router's loss of models with experts: OPSD adds it as GRPO does, with the weight that the configuration says."""

import pytest
import torch
from helpers import build, distill_settings, lenient_reward, step_logs
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from trl_selfdistill import OPSDConfig, OPSDTrainer

EXPERTS, CHOSEN = 4, 2


def moe(tokenizer, **overrides):
    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "max_position_embeddings": 256,
        "router_aux_loss_coef": 0.0,
    }
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**shape, **ends, **overrides}))
    model.generation_config.update(**ends)
    for layer in model.model.layers:
        layer.mlp.gate.weight.data *= 20  # uneven loads, which the router's loss can change
    return model


def make(tokenizer, tmp_path, model=None, **config):
    given = distill_settings(tmp_path, **{"num_generations": 4, "optim": "sgd", "learning_rate": 0.1, **config})
    return build(OPSDTrainer, OPSDConfig(**given), model or moe(tokenizer), tokenizer, reward_funcs=lenient_reward)


def by_hand(model, batch):
    """N sum_i f_i P_i over the real tokens of both layers: f_i counts how often expert i is chosen, P_i is its mean
    probability."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    routers = model(input_ids=ids, attention_mask=mask, output_router_logits=True).router_logits
    probabilities = torch.cat([logits[mask.flatten().bool()] for logits in routers]).softmax(-1)
    assert probabilities.shape == (2 * int(mask.sum()), EXPERTS)
    chosen = torch.zeros_like(probabilities).scatter(1, probabilities.topk(CHOSEN).indices, 1.0)
    return EXPERTS * (chosen.mean(0) * probabilities.mean(0)).sum()


def gradients(trainer, loss):
    """By name; zeros where the loss does not depend on a parameter."""
    names, parameters = zip(*trainer.model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for name, p, g in zip(names, parameters, found, strict=True)}


@pytest.mark.parametrize("policy_weight", [0.0, 0.3])
@pytest.mark.parametrize("training", [True, False])
def test_loss_and_gradient_are_those_by_hand(training, policy_weight, tokenizer, tmp_path):
    trainer = make(tokenizer, tmp_path, router_aux_loss_coef=10.0, opsd_policy_weight=policy_weight)
    trainer.model.train(training)
    trainer.current_gradient_accumulation_steps = 2
    batch = trainer._generate_and_score_completions([trainer.train_dataset[i // 4] for i in range(8)])
    router = by_hand(trainer.model, batch)
    with_router = trainer._compute_loss(trainer.model, batch)
    assert trainer._metrics["train" if training else "eval"]["aux_loss"] == [pytest.approx(router.item(), rel=1e-5)]
    trainer.aux_loss_enabled = False
    without = trainer._compute_loss(trainer.model, batch)
    share = 10.0 * router / (2 if training else 1)
    torch.testing.assert_close(with_router - without, share, rtol=1e-5, atol=1e-6)
    ours, expected = gradients(trainer, with_router - without), gradients(trainer, share)
    assert expected["model.layers.0.mlp.gate.weight"].abs().max() > 1e-4
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_coefficient_reaches_the_routers_in_training(checkpointing, tokenizer, tmp_path):
    gates, logged = [], []
    for coefficient in (0.0, 10.0):
        config = {"router_aux_loss_coef": coefficient, "gradient_checkpointing": checkpointing, "max_steps": 3}
        trainer = make(tokenizer, tmp_path, **config)
        trainer.train()
        gates.append([layer.mlp.gate.weight.detach().clone() for layer in trainer.model.model.layers])
        logged.append(["aux_loss" in entry for entry in step_logs(trainer)])
    for without, with_it in zip(*gates, strict=True):
        assert (without - with_it).abs().max() > 1e-3
    assert logged == [[False] * 3, [True] * 3]


def test_the_models_own_coefficient_is_the_default(tokenizer, tmp_path):
    trainer = make(tokenizer, tmp_path, model=moe(tokenizer, router_aux_loss_coef=0.5))
    trainer.train()
    assert trainer.router_aux_loss_coef == 0.5
    assert "aux_loss" in step_logs(trainer)[0]


def test_a_model_that_hides_its_routing_is_refused(tokenizer, tmp_path):
    trainer = make(tokenizer, tmp_path, router_aux_loss_coef=0.1)
    base, forward = trainer.model.base_model, trainer.model.base_model.forward

    def hiding(*args, **kwargs):
        out = forward(*args, **kwargs)
        return type(out)(**{name: value for name, value in out.items() if name != "router_logits"})

    base.forward = hiding
    with pytest.raises(ValueError, match=r"returns no router logits.*router_aux_loss_coef=0"):
        trainer.train()
