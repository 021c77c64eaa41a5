"""What the ops refuse, and that they read every argument by its strides."""

import pytest
import torch
from ops_helpers import IMPLS, INTERPRETED, device_of, problem
from torch import nn

from trl_selfdistill.ops import linear_divergence, linear_logps

ALL = ["reference", *IMPLS]


@pytest.mark.parametrize("impl", ALL)
def test_strided_targets_biases_and_weights(impl):
    """A column of a larger tensor gives what its contiguous copy gives."""
    p = problem(6, 4, 9, bias=True, dtype=torch.float32).to(device_of(impl))

    def column(tensor):
        strided = torch.stack((torch.zeros_like(tensor), tensor), dim=-1)[..., 1]
        assert not strided.is_contiguous()
        return strided

    def both(view):
        student = p.student.clone().requires_grad_()
        weight, bias, targets = view(p.weight), view(p.bias), view(p.targets)
        case = {"bias": bias, "targets": targets, "token_weights": view(p.token_weights), "impl": impl}
        out = linear_divergence(student, view(p.teacher), weight, **case)
        logps, entropy = linear_logps(view(student), weight, targets, bias=bias, impl=impl)
        (view(logps) * view(p.token_weights)).sum().backward(retain_graph=True)
        (out.loss + entropy.sum()).backward()  # an upstream gradient of stride 0
        return out.student_logps, out.teacher_logps, out.divergence, logps.detach(), entropy.detach(), student.grad

    torch.testing.assert_close(both(column), both(torch.clone))


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16], ids=str)
def test_targets_of_any_integer_dtype(impl, dtype):
    p = problem(6, 4, 9, dtype=torch.float32).to(device_of(impl))
    expected = linear_logps(p.student, p.weight, p.targets, impl=impl)
    torch.testing.assert_close(linear_logps(p.student, p.weight, p.targets.to(dtype), impl=impl), expected)


@pytest.mark.parametrize("impl", ["auto", "reference", "torch"])
@pytest.mark.parametrize("wrong", [-100, -1, 9])
def test_a_target_outside_the_vocabulary_is_refused(impl, wrong):
    p = problem(6, 4, 9, dtype=torch.float32)
    p.targets[2] = wrong
    with pytest.raises(ValueError, match=rf"targets must lie in \[0, 9\), got {wrong}: leave out the tokens"):
        linear_logps(p.student, p.weight, p.targets, impl=impl)
    with pytest.raises(ValueError, match=rf"targets must lie in \[0, 9\), got {wrong}: .*token_weights 0"):
        linear_divergence(p.student, p.teacher, p.weight, targets=p.targets, impl=impl)


@pytest.mark.parametrize("impl", ALL)
def test_the_target_of_a_token_without_weight_is_not_read(impl):
    p = problem(6, 4, 9, dtype=torch.float32).to(device_of(impl))
    p.token_weights[2] = 0.0
    case = {"token_weights": p.token_weights, "impl": impl}
    expected = linear_divergence(p.student, p.teacher, p.weight, targets=p.targets.clone(), **case)
    p.targets[2] = -100
    out = linear_divergence(p.student, p.teacher, p.weight, targets=p.targets, **case)
    torch.testing.assert_close(out.student_logps, expected.student_logps)
    assert out.student_logps is not None and out.student_logps[2] == 0


@pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs Triton's interpreter or a GPU")
def test_liger_kernels_give_nan_for_such_a_target():
    """On a GPU nobody looks at the targets beforehand. The rows lie inside a larger tensor of infinities."""
    from trl_selfdistill.ops.triton_rows import logps_rows
    from trl_selfdistill.ops.types import RowGradient, Settings

    device = device_of("liger")
    around = torch.full((9, 24), torch.inf, device=device)
    around[3:6, 8:16] = torch.linspace(-1, 1, 24, device=device).view(3, 8)
    targets = torch.tensor([-100, 3, 8], device=device)
    stats, out, ones = torch.zeros(2, 3, device=device), torch.zeros(3, 8, device=device), torch.ones(3, device=device)
    gradient = RowGradient(ones, ones, out)
    logps_rows(around[3:6, 8:16], None, targets, stats, [gradient], Settings())
    assert stats[0].isnan().tolist() == [True, False, True]
    assert not stats[1].isnan().any()
    assert out.isnan().all(-1).tolist() == [True, False, True] and out[1].isfinite().all()


def ops_with(**wrong):
    p = problem(3, 4, 5, dtype=torch.float32)
    shared = {"weight": p.weight, "targets": p.targets, "bias": None}
    yield lambda: linear_divergence(**{"student_hidden": p.student, "teacher_hidden": p.teacher, **shared, **wrong})
    hidden = wrong.pop("student_hidden", p.student)
    if not {"token_weights", "teacher_weight"} & wrong.keys():
        yield lambda: linear_logps(**{"hidden": hidden, **shared, **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"weight": nn.Linear(4, 5)},
            "weight must be a tensor, got the module Linear: pass lm_head.weight.*output_head",
        ),
        ({"weight": [[1.0]]}, "weight must be a tensor, got list"),
        ({"weight": None}, "weight must be a tensor, got NoneType"),
        ({"weight": torch.zeros(5, 4, dtype=torch.uint8)}, "weight must have a floating-point dtype, got torch.uint8"),
        ({"weight": torch.zeros(5, 3)}, r"\(V, H\).*output_head"),
        ({"weight": torch.zeros(0)}, r"\(V, H\).*output_head"),
        ({"student_hidden": torch.zeros(1, 3, 4)}, "Flatten batch and time"),
        ({"student_hidden": torch.zeros(3, 4, dtype=torch.long)}, "hidden must have a floating-point dtype"),
        ({"targets": torch.zeros(3)}, "targets must be token ids of an integer dtype, got torch.float32"),
        ({"targets": torch.ones(3, dtype=torch.bool)}, "targets must be token ids"),
        ({"targets": [1, 2, 3]}, "targets must be a tensor, got list"),
        ({"targets": torch.zeros(1, 3, dtype=torch.long)}, r"targets must be \(3,\), got \(1, 3\)"),
        ({"bias": torch.zeros(4)}, "bias must have one entry"),
        ({"bias": 0.5}, "bias must be a tensor, got float"),
        ({"token_weights": torch.ones(2)}, r"token_weights must be \(3,\)"),
        ({"teacher_weight": nn.Linear(4, 5)}, "teacher_weight must be a tensor, got the module Linear"),
    ],
    ids=lambda x: x[:40] if isinstance(x, str) else next(iter(x)),
)
def test_wrong_arguments_name_the_way_out(wrong, message):
    for op in ops_with(**wrong):
        with pytest.raises(ValueError, match=message):
            op()


def test_missing_arguments_are_pythons_own_error():
    with pytest.raises(TypeError, match="targets"):
        linear_logps(torch.zeros(3, 4), torch.zeros(5, 4))  # pyright: ignore[reportCallIssue]


def test_targets_are_not_optional_where_they_are_scored():
    with pytest.raises(ValueError, match="targets must be a tensor, got NoneType"):
        linear_logps(torch.zeros(3, 4), torch.zeros(5, 4), None)  # pyright: ignore[reportArgumentType]
