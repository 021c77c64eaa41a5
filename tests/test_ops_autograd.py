"""What the ops do inside a training step: modes, masks, weights, autocast, cost."""

import pytest
import torch
from ops_helpers import IMPLS, CountProducts, device_of, problem, solve

from trl_selfdistill.ops import linear_divergence, linear_logps

ALL = ["reference", *IMPLS]


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("mask", ["no tokens", "all masked"])
def test_nothing_to_learn_from_is_a_differentiable_zero(impl, mask):
    p = problem(0 if mask == "no tokens" else 5, 4, 7, bias=True, dtype=torch.float32).to(device_of(impl))
    p.token_weights.zero_()
    result = solve(p, impl=impl)
    assert result.output.loss == 0
    assert result.output.divergence.shape == p.targets.shape
    assert all(g is not None and not g.any() for g in result.gradients.values())
    logps, entropy = linear_logps(p.student[:0], p.weight, p.targets[:0], impl=impl)
    assert logps.shape == entropy.shape == (0,)


@pytest.mark.parametrize("impl", ALL)
def test_masked_tokens_contribute_exactly_nothing(impl):
    p = problem(9, 4, 7, bias=True, dtype=torch.float32).to(device_of(impl))
    keep = torch.tensor([True, False, True, True, False, True, False, True, True], device=p.weight.device)
    p.token_weights[~keep] = 0.0
    p.student[~keep] = float("nan")  # padding may hold anything
    short = p.__class__(**{k: v if k in ("weight", "bias") else v[keep] for k, v in vars(p).items()})
    masked, sliced = solve(p, impl=impl), solve(short, impl=impl)
    assert torch.equal(masked.output.loss, sliced.output.loss)
    assert torch.equal(masked.output.divergence[keep], sliced.output.divergence)
    assert not masked.output.divergence[~keep].any()
    assert torch.equal(masked.gradients["student"][keep], sliced.gradients["student"])
    assert not masked.gradients["student"][~keep].any()
    assert torch.equal(masked.gradients["weight"], sliced.gradients["weight"])


@pytest.mark.parametrize("impl", IMPLS)
def test_matrix_products(impl):
    """Two chunks: one product each for both streams, one for the hidden gradient, one for a trainable head."""
    p = problem(6, 4, 7, dtype=torch.float32).to(device_of(impl))
    student, weight = p.student.requires_grad_(), p.weight

    def count(**grad):
        weight.requires_grad_(grad.get("head", False))
        with torch.set_grad_enabled(grad.get("on", True)), CountProducts() as products:
            loss = linear_divergence(student, p.teacher, weight, impl=impl, chunk_bytes=10 * 7 * 3).loss
            if loss.requires_grad:
                loss.backward()
        return products.count

    assert count(on=False) == 2
    assert count() == 4
    assert weight.grad is None
    assert count(head=True) == 6
    with CountProducts() as products:
        linear_logps(student, weight, p.targets, impl=impl, chunk_bytes=10 * 7 * 3)
    assert products.count == 2


@pytest.mark.parametrize("impl", ALL)
def test_gradient_is_linear(impl):
    """In the token weights, in the upstream gradient (loss scaling) and over repeated backward passes."""
    p = problem(5, 4, 7, bias=True, dtype=torch.float32).to(device_of(impl))
    base = solve(p, impl=impl).gradients["weight"]
    doubled = solve(p.__class__(**{**vars(p), "token_weights": 2 * p.token_weights}), impl=impl).gradients["weight"]
    torch.testing.assert_close(doubled, 2 * base)
    weight = p.weight.clone().requires_grad_()
    loss = linear_divergence(p.student, p.teacher, weight, bias=p.bias, token_weights=p.token_weights, impl=impl).loss
    (loss * 1024).backward(retain_graph=True)
    (loss * 1024).backward()
    torch.testing.assert_close(weight.grad, 2048 * base)


@pytest.mark.parametrize("impl", ALL)
def test_teacher_has_no_gradient(impl):
    p = problem(5, 4, 7, dtype=torch.float32).to(device_of(impl))
    teacher = p.teacher.requires_grad_()
    out = linear_divergence(p.student, teacher, p.weight, targets=p.targets, impl=impl)
    assert not out.loss.requires_grad
    out = linear_divergence(p.student.requires_grad_(), teacher, p.weight, targets=p.targets, impl=impl)
    out.loss.backward()
    assert teacher.grad is None
    assert not any(v.requires_grad for k, v in vars(out).items() if k != "loss")


@pytest.mark.parametrize("impl", ALL)
def test_autocast_rounds_the_operands_and_keeps_fp32_logits(impl):
    p = problem(9, 16, 67, dtype=torch.float32).to(device_of(impl))
    rounded = p.to(torch.bfloat16).to(torch.float32)
    with torch.autocast(p.weight.device.type, torch.bfloat16):
        ours = solve(p, impl=impl)
    expected = solve(rounded, impl=impl)
    torch.testing.assert_close(ours.output.divergence, expected.output.divergence, rtol=1e-4, atol=1e-5)
    assert ours.gradients["weight"].dtype == torch.float32
    torch.testing.assert_close(ours.gradients["weight"], expected.gradients["weight"], rtol=2e-2, atol=1e-3)


def both_ops(p, impl):
    """Log-probabilities and entropies of one stream by the two ops, and the hidden gradient of the second."""
    out = linear_divergence(p.student, p.student, p.weight, bias=p.bias, targets=p.targets, impl=impl)
    student = p.student.clone().requires_grad_()
    logps, entropy = linear_logps(student, p.weight, p.targets, bias=p.bias, impl=impl)
    with torch.autocast(student.device.type, enabled=False):  # as a training step calls backward
        gradient = torch.autograd.grad(logps.sum() + entropy.sum(), student)[0]
    return (out.student_logps, out.student_entropy), (logps.detach(), entropy.detach()), gradient


@pytest.mark.parametrize("impl", ALL)
def test_both_ops_read_the_same_operands_under_autocast(impl):
    """Rounded to bf16 once; the logits stay fp32: 100 times nearer than the same head called under autocast."""
    p = problem(9, 16, 67, bias=True, dtype=torch.float32).to(device_of(impl))
    _, expected, gradient = both_ops(p.to(torch.bfloat16).to(torch.float32), impl)
    with torch.autocast(p.weight.device.type, torch.bfloat16):
        ours, scored, ours_gradient = both_ops(p, impl)
        logits = torch.nn.functional.linear(p.student, p.weight, p.bias).float()
    assert logits.dtype == torch.float32 and all(x.dtype == torch.float32 for x in (*ours, *scored, ours_gradient))
    rounded = logits.log_softmax(-1).gather(1, p.targets[:, None])[:, 0]
    for values in (ours, scored):
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
        assert 100 * (values[0] - expected[0]).abs().max() < (rounded - expected[0]).abs().max()
    torch.testing.assert_close(ours_gradient, gradient, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("impl", ALL)
def test_fp32_operands_with_autocast_off_inside(impl):
    """What TRL's `cast_lm_head_to_fp32` asks for under mixed precision: nothing is rounded, in either pass."""
    p = problem(9, 16, 67, bias=True, dtype=torch.float32).to(device_of(impl))
    device = p.weight.device.type
    expected, expected_gradients = both_ops(p, impl), solve(p, impl=impl).gradients
    with torch.autocast(device, torch.bfloat16), torch.autocast(device, enabled=False):
        ours, gradients = both_ops(p, impl), solve(p, impl=impl).gradients
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_backward_pass_rounds_as_the_forward_pass_did(impl):
    """A trainable head's logits are made again in the backward pass, which runs outside of autocast."""
    p = problem(9, 16, 67, dtype=torch.float32).to(device_of(impl))
    leaves = [t.requires_grad_() for t in (p.student, p.weight)]
    with torch.autocast(p.weight.device.type, torch.bfloat16):
        logps, _ = linear_logps(*leaves, p.targets, impl=impl)
    ours = torch.autograd.grad(logps.sum(), leaves)
    rounded = [t.detach().bfloat16().float().requires_grad_() for t in leaves]
    expected = torch.autograd.grad(linear_logps(*rounded, p.targets, impl="torch")[0].sum(), rounded)
    exact = torch.autograd.grad(linear_logps(*leaves, p.targets, impl="torch")[0].sum(), leaves)
    tolerance = 1e-5 if p.weight.device.type == "cpu" else 1e-2  # on CUDA the gradient's own operands are bf16
    for mine, same, other in zip(ours, expected, exact, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, same, rtol=tolerance, atol=tolerance)
        assert (mine - other).abs().max() > 10 * (mine - same).abs().max()


@pytest.mark.parametrize("impl", ALL)
def test_tied_embeddings(impl):
    """The gradient of a head that is also the input embedding is the sum of both uses."""
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(13, 8, device=device_of(impl))
    tokens = torch.arange(5, device=embedding.weight.device)
    hidden = embedding(tokens)
    teacher = hidden.detach() + 0.3
    linear_divergence(hidden, teacher, embedding.weight, impl=impl).loss.backward()
    head = embedding.weight.detach().clone().requires_grad_()
    stream = embedding.weight.detach()[tokens].requires_grad_()
    linear_divergence(stream, teacher, head, impl=impl).loss.backward()
    assert head.grad is not None and stream.grad is not None
    expected = head.grad.clone()
    expected[tokens] += stream.grad
    torch.testing.assert_close(embedding.weight.grad, expected, rtol=1e-4, atol=1e-6)
