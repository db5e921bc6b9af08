"""Each loss in the network's outputs: values as torch has them, gradient, curvature and its roots by plain autograd."""

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, huber_loss, mse_loss

from fragile_lib.objectives.losses import (
    CROSS_ENTROPY,
    BinaryLogit,
    CrossEntropy,
    Huber,
    OwnLoss,
    SquaredError,
    as_loss,
    check_plain,
)
from fragile_lib.tools.errors import InputError

DRAW = torch.Generator().manual_seed(0)
N, C, T = 6, 4, 3
Z = 2 * torch.randn(N, C, generator=DRAW, dtype=torch.float64)
LONG = torch.randn(N, T, C, generator=DRAW, dtype=torch.float64)
LABELS = torch.tensor([0, 3, 1, 2, 2, 0])
TOKENS = torch.randint(0, C, (N, T), generator=DRAW)
REAL = torch.randn(N, C, generator=DRAW, dtype=torch.float64)
SOFT = torch.rand(N, C, generator=DRAW, dtype=torch.float64)
SOFT = SOFT / SOFT.sum(1, keepdim=True)
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.0], dtype=torch.float64)
SOME = torch.where(torch.arange(N) == 2, -100, LABELS)
PADDED = torch.where(torch.arange(T)[None] < torch.tensor([1, 2, 3, 3, 1, 0])[:, None], TOKENS, -7)


def torch_of(z, y, **options):
    return cross_entropy(z, y, reduction="none", **options)


def each_place(z, y, **options):
    return cross_entropy(z.mT, y, reduction="none", **options)


def cubed(z, y):
    return (z**4).sum(1) + (z[:, 0] * z[:, 1]) ** 2 + (z - y).pow(2).sum(1)


# (loss, outputs, targets, what it is by torch's own functions)
CASES = {
    "labels": (CROSS_ENTROPY, Z, LABELS, torch_of),
    "class weights": (CrossEntropy(WEIGHT), Z, LABELS, lambda z, y: torch_of(z, y, weight=WEIGHT)),
    "smoothing": (CrossEntropy(None, 0.2), Z, LABELS, lambda z, y: torch_of(z, y, label_smoothing=0.2)),
    "weights and smoothing": (
        CrossEntropy(WEIGHT.tolist(), 0.1), Z, LABELS, lambda z, y: torch_of(z, y, weight=WEIGHT, label_smoothing=0.1)
    ),
    "ignored": (CrossEntropy(ignore_index=-100), Z, SOME, torch_of),
    "soft": (CROSS_ENTROPY, Z, SOFT, torch_of),
    "soft, weights": (
        CrossEntropy(WEIGHT, 0.3), Z, SOFT, lambda z, y: torch_of(z, y, weight=WEIGHT, label_smoothing=0.3)
    ),
    "tokens": (CROSS_ENTROPY, LONG, TOKENS, lambda z, y: each_place(z, y).mean(1)),
    "padded tokens": (
        CrossEntropy(ignore_index=-7), LONG, PADDED,
        lambda z, y: each_place(z, y, ignore_index=-7).sum(1) / (y != -7).sum(1).clamp(min=1),
    ),
    "sum of tokens": (
        CrossEntropy(places="sum", ignore_index=-7), LONG, PADDED,
        lambda z, y: each_place(z, y, ignore_index=-7).sum(1),
    ),
    "squared error": (SquaredError(), Z, REAL, lambda z, y: mse_loss(z, y, reduction="none").sum(1) / 2),
    "huber": (Huber(0.7), Z, REAL, lambda z, y: huber_loss(z, y, reduction="none", delta=0.7).sum(1)),
    "binary": (BinaryLogit(), Z, SOFT, lambda z, y: binary_cross_entropy_with_logits(z, y, reduction="none").sum(1)),
    "one logit": (
        BinaryLogit(), Z[:, :1], (LABELS > 1).double()[:, None],
        lambda z, y: binary_cross_entropy_with_logits(z, y, reduction="none")[:, 0],
    ),
    "own": (OwnLoss(cubed), Z, REAL, cubed),
}  # fmt: skip
cases = pytest.mark.parametrize("name", CASES)


def curvature(z, y, value):
    """(n, D, D) the Hessian of each loss in its own outputs, in a row, by autograd twice."""
    z = z.clone().requires_grad_()
    gradient = torch.autograd.grad(value(z, y).sum(), z, create_graph=True)[0].flatten(1)
    columns = [
        torch.autograd.grad(gradient[:, j].sum(), z, retain_graph=True)[0].flatten(1) for j in range(gradient.shape[1])
    ]
    return torch.stack(columns, 2)


@cases
def test_values_are_those_of_torch_and_derivatives_those_of_autograd(name):
    loss, z, y, value = CASES[name]
    torch.testing.assert_close(loss.values(z, y), value(z, y), rtol=1e-12, atol=1e-14)
    at = z.clone().requires_grad_()
    expected = torch.autograd.grad(value(at, y).sum(), at)[0]
    torch.testing.assert_close(loss.gradients(z, y), expected, rtol=1e-11, atol=1e-13)
    curved, roots = curvature(z, y, value), loss.roots(z, y).flatten(1, -2)
    torch.testing.assert_close(roots @ roots.mT, curved, rtol=1e-9, atol=1e-11)
    weights = torch.rand(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v = torch.randn(2, *z.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = torch.einsum("n,nab,knb->kna", weights, curved, v.flatten(2)).view(v.shape)
    torch.testing.assert_close(loss.curved(z, y, weights, v), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss.curved(z, y, weights, v[1]), expected[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in CASES if isinstance(CASES[name][0], CrossEntropy)])
def test_drawn_labels_come_to_the_curvature(name):
    loss, z, y, value = CASES[name]
    draws = (torch.arange(100_000).double() + 0.5) / 100_000  # every quantile once, another order at each place
    draws = torch.stack([draws.roll(7919 * t) if t else draws for t in range(T)]) if z.ndim == 3 else draws
    roots = loss.roots(z, y, draws.expand(*z.shape[:-1], -1))
    own = roots @ roots.mT
    expected = curvature(z, y, value)
    if z.ndim == 3:
        expected = torch.stack([expected[:, t * C : (t + 1) * C, t * C : (t + 1) * C] for t in range(T)], 1)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-3)


def test_a_loss_that_curves_downwards_has_no_root_but_a_curvature():
    loss = as_loss(lambda z, y: -(z**2).sum(1))
    torch.testing.assert_close(loss.curved(Z, REAL, torch.ones(N).double(), Z), -2 * Z)
    with pytest.raises(InputError, match="^loss = .*cg_ggn"):
        loss.roots(Z, REAL)


@pytest.mark.parametrize(
    ("loss", "y", "outputs", "match"),
    [
        (CROSS_ENTROPY, LABELS + 1, C, r"^labels = \(1, 4\): give classes from 0 to 3"),
        (CROSS_ENTROPY, SOME, C, r"^labels = \(-100, .*ignore_index"),
        (CROSS_ENTROPY, LABELS.double(), C, "^labels = .*whole numbers"),
        (CROSS_ENTROPY, LABELS > 1, C, "^labels = 'booleans'"),
        (CROSS_ENTROPY, 2 * SOFT, C, "^labels = .*sum to one"),
        (CROSS_ENTROPY, 0 * LABELS, 1, "^n_classes = 1: "),
        (CrossEntropy(WEIGHT), LABELS, C + 1, "^weight = "),
        (SquaredError(), REAL, 2, r"^targets.shape = \(6, 4\)"),
        (SquaredError(), LABELS, 2, r"^targets.shape = \(6,\)"),
        (SquaredError(), REAL / 0, C, "^targets = 'not finite'"),
        (BinaryLogit(), LABELS.double(), 1, r"^labels = \(0.0, 3.0\)"),
    ],
)
def test_targets_without_a_meaning_are_named(loss, y, outputs, match):
    with pytest.raises(InputError, match=match):
        loss.checked(y[None], outputs)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: as_loss(nn.MSELoss()).values(Z, REAL), r"^loss\(outputs, targets\) = \(\): give one loss for each"),
        (lambda: check_plain(CrossEntropy(WEIGHT), LABELS), "^loss = .*kernels"),
        (lambda: check_plain(CROSS_ENTROPY, SOFT), "^loss = .*kernels"),
    ],
)
def test_bad_options_are_named(make, match):
    with pytest.raises(InputError, match=match):
        make()


def test_targets_are_taken_in_the_form_that_values_take():
    assert CROSS_ENTROPY.checked(LABELS[None].int(), C).dtype == torch.int64
    assert SquaredError().checked(LABELS[None], 1).shape == (1, N, 1)
    assert BinaryLogit().checked((LABELS > 1)[None], 1).is_floating_point()
