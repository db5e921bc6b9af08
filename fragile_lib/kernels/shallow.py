"""Dense curvature of multilayer perceptrons with one hidden layer, as one matrix product for each network.

With hidden activations a = sigma(z), slopes s = sigma'(z), output weights W and class probabilities p,

    H = sum_i w_i J_i^T Lambda_i J_i  +  terms of second order,        Lambda_i = diag(p_i) - p_i p_i^T = L_i L_i^T,

the first sum is B^T diag(w) B with B_i = L_i^T J_i, two rows for each example of three classes. The terms of second
order couple each hidden unit only to itself: sum_i kappa_ih (x_i, 1)(x_i, 1)^T with kappa = sigma''(z) sum_c delta_c
W_ch, and, with the unit's output weights, sum_i delta_ic s_ih (x_i, 1), delta_i = w_i (p_i - y_i).

Letters: E stack size, P parameters, n examples, F features, h hidden units, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn.functional import one_hot, pad

from fragile_lib.models.mlp import MLP


def shallow_matrices(
    model: MLP, theta: Tensor, x: Tensor, y: Tensor, weights: Tensor, gauss_newton: bool = False
) -> Tensor:
    """(E, P, P): the Hessian of sum_i w_i loss_i, or its Gauss-Newton part, without L2 term.

    theta (E, P), x (E, n, F), y (E, n), weights (E, n) of either sign, for a model of depth 1.
    """
    constant = pad(x, (0, 1), value=1.0)
    outer, logits, a, s = _forward(model, theta, x)
    p = logits.softmax(2)
    factor = softmax_factor(p).mT  # (E, n, C - 1, C)
    mixed = (factor.flatten(1, 2) @ outer).view(*factor.shape[:3], -1) * s[:, :, None]
    blocks = mixed[..., None, :] * constant[:, :, None, :, None], factor[..., None] * a[:, :, None, None]
    rows = torch.cat([*(block.flatten(3) for block in blocks), factor], dim=3)
    weighted = rows * weights[:, :, None, None]
    found = rows.flatten(1, 2).mT @ weighted.flatten(1, 2)
    if not gauss_newton:
        delta = weights[..., None] * (p - one_hot(y, model.n_classes))
        _add_second_order(model, found, constant, outer, a, s, delta)
    return torch.from_numpy(_permuted(found.numpy(), _order(model).numpy()))


def _order(model: MLP) -> Tensor:
    """(P,) places of the parameters among rows sorted by feature, then hidden unit: there the inner loops are long."""
    f, h, classes = model.n_features, model.width, model.n_classes
    inner = torch.arange((f + 1) * h).view(f + 1, h)
    rest = torch.arange((f + 1) * h, (f + 1) * h + classes * (h + 1))
    return torch.cat([inner[:f].T.flatten(), inner[f], rest])


@njit(cache=True, nogil=True)
def _permuted(matrices, order):
    """Symmetric matrices (E, P, P), rows and columns taken in this order (P,); some ten times faster than indexing."""
    out = np.empty_like(matrices)
    for e in range(matrices.shape[0]):
        for i in range(order.shape[0]):
            row = matrices[e, order[i]]
            for j in range(i + 1):
                out[e, i, j] = row[order[j]]
                out[e, j, i] = out[e, i, j]
    return out


def softmax_factor(p: Tensor) -> Tensor:
    """L (..., C, C - 1) with L L^T = diag(p) - p p^T (Tanabe and Sagae 1992), for probabilities p (..., C).

    With q_c the probability beyond class c, column c is sqrt(p_c q_c / q_{c-1}) times
    (0, ..., 1, -p_k / q_c for k > c).
    """
    beyond = p.flip(-1).cumsum(-1).flip(-1)  # q_{c-1} at place c
    tiny = torch.finfo(p.dtype).tiny
    here, after = beyond[..., :-1].clamp(min=tiny), beyond[..., 1:].clamp(min=tiny)
    scale = (p[..., :-1] * after / here).sqrt()
    below = -p[..., :, None] / after[..., None, :]
    classes = p.shape[-1]
    ones = torch.eye(classes, classes - 1, dtype=p.dtype, device=p.device)
    return (below.tril(-1)[..., :, : classes - 1] + ones) * scale[..., None, :]


def _forward(model: MLP, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output weights (E, C, h), logits (E, n, C), activations and slopes of the hidden units (E, n, h)."""
    f, h, classes = model.n_features, model.width, model.n_classes
    inner, bias, outer, last = theta.split([h * f, h, classes * h, classes], dim=1)
    outer = outer.view(-1, classes, h)
    z = x @ inner.view(-1, h, f).mT + bias[:, None]
    if model.activation == "tanh":
        a = z.tanh()
        s = 1 - a**2
    elif model.activation == "relu":
        a, s = z.relu(), (z > 0).to(z)
    else:
        a = torch.nn.functional.softplus(z, beta=model.sharpness, threshold=40.0)
        s = (model.sharpness * z).sigmoid()
    return outer, a @ outer.mT + last[:, None], a, s


def _add_second_order(model: MLP, found: Tensor, x: Tensor, outer: Tensor, a: Tensor, s: Tensor, delta: Tensor) -> None:
    """Add what the Gauss-Newton part leaves out to `found` (E, P, P), ordered as its rows; x (E, n, F + 1)."""
    f, h, classes = model.n_features, model.width, model.n_classes
    units = torch.arange(h)
    own = units[:, None] + h * torch.arange(f + 1)  # (h, F + 1)
    if model.activation != "relu":
        bend = -2 * a * s if model.activation == "tanh" else model.sharpness * s * (1 - s)
        kappa = bend * (delta @ outer)
        found[:, own[:, :, None], own[:, None, :]] += torch.einsum("enh,enf,eng->ehfg", kappa, x, x)
    cross = torch.einsum("enc,enh,enf->echf", delta, s, x)
    places = (h * (f + 1) + h * torch.arange(classes)[:, None] + units)[..., None]  # (C, h, 1)
    found[:, places, own] += cross
    found[:, own, places] += cross
