"""Drivers that run the passes of `conv_passes` over the blocks of a data set.

Every routine has a reference in `objective.Objective`, built on torch.func, against which it is tested. Parameters come
packed (E, Q) as `conv_plan.Layout` says; data sets are x (S, blocks, pixels * lanes) and y (S, blocks * lanes), weights
(E, blocks * lanes); `first` and `stop` are blocks. What is added up is in the order of a buffer of gradients.
"""

from __future__ import annotations

import numpy as np

from fragile_lib.kernels.conv_layers import buffer
from fragile_lib.kernels.conv_passes import (
    add_cotangent,
    backward,
    column,
    curved_deltas,
    factor_deltas,
    forward,
    layer_sums,
    loss_deltas,
    paired,
    softmax,
    tangent_forward,
    tangent_sums,
    turned_backward,
    weighted_loss,
)
from fragile_lib.kernels.conv_plan import AFTER, GRADIENT, INTO, N_OUT
from fragile_lib.kernels.conv_tiles import add_lane_sums
from fragile_lib.kernels.kernel_cache import compiled


@compiled
def logits(net, packed, x, dataset, first, stop, out):
    """out (E, blocks * lanes, classes) = logits."""
    units, top = buffer(net.units, packed), net.plan[-1]
    for e in range(len(packed)):
        for b in range(first, stop):
            forward(net, x[dataset[e], b], packed[e], units)
            for c in range(top[N_OUT]):
                for lane in range(net.lanes):
                    out[e, b * net.lanes + lane, c] = units[top[INTO] + c * net.lanes + lane]


@compiled
def gradients(net, packed, x, y, dataset, weights, cotangent, first, stop, out, values):
    """out (E, gradients / lanes) += gradient of sum_i w_i loss_i + <c_i, logits_i> over the blocks.

    weights (E, blocks * lanes); c, one for all networks, as cotangent (blocks, classes * lanes), or (0, 0) for none.
    values (E,) += sum_i w_i loss_i + <c_i, logits_i>, in float64, unless it is empty.
    """
    units, deltas = buffer(net.units, packed), buffer(net.units, packed)
    sums, odds = buffer(net.gradients, packed), buffer(net.plan[-1, N_OUT] * net.lanes, packed)
    none, given = sums[:0], len(cotangent) > 0
    for e in range(len(packed)):
        sums[:] = 0
        for b in range(first, stop):
            rows, image = slice(b * net.lanes, (b + 1) * net.lanes), x[dataset[e], b]
            if not (np.any(weights[e][rows]) or (given and np.any(cotangent[b]))):
                continue
            forward(net, image, packed[e], units)
            softmax(net, units, odds)
            loss_deltas(net, odds, y[dataset[e]][rows], weights[e][rows], deltas)
            if len(values):
                values[e] += weighted_loss(net, units, odds, y[dataset[e]][rows], weights[e][rows])
            if given:
                add_cotangent(net, cotangent[b], deltas)
                if len(values):
                    values[e] += paired(net, cotangent[b], units)
            backward(net, packed[e], units, deltas, none)
            layer_sums(net, image, units, deltas, sums)
        add_lane_sums(out[e], 0, sums, 0, len(sums) // net.lanes)


@compiled
def batch_gradients(net, packed, pixels, y, rows, weights, first, stop, out):
    """`gradients` on the blocks first .. stop of a batch: images `rows` of pixels (n, d), y (n,), weights (E, n)."""
    lanes, blocks = net.lanes, stop - first
    x = buffer(blocks * pixels.shape[1] * lanes, packed).reshape(1, blocks, pixels.shape[1] * lanes)
    labels, factors = np.zeros((1, blocks * lanes), np.int64), np.zeros((len(packed), blocks * lanes), packed.dtype)
    for b in range(blocks):
        some = rows[(first + b) * lanes : (first + b + 1) * lanes]
        for d in range(pixels.shape[1]):
            for lane in range(len(some)):
                x[0, b, d * lanes + lane] = pixels[some[lane], d]
        for lane in range(len(some)):
            labels[0, b * lanes + lane] = y[some[lane]]
            for e in range(len(packed)):
                factors[e, b * lanes + lane] = weights[e, some[lane]]
    dataset, none = np.zeros(len(packed), np.int64), np.zeros((0, 0), packed.dtype)
    gradients(net, packed, x, labels, dataset, factors, none, net.first, blocks, out, np.zeros(0))


@compiled
def tangents(net, packed, moved, x, y, dataset, first, stop, out):
    """out (E, K, blocks * lanes) = derivative of each loss along each direction; moved (E, K, Q)."""
    units, tangent = buffer(net.units, packed), buffer(net.units, packed)
    top = net.plan[-1]
    odds = buffer(top[N_OUT] * net.lanes, packed)
    for e in range(len(packed)):
        for b in range(first, stop):
            image = x[dataset[e], b]
            forward(net, image, packed[e], units)
            softmax(net, units, odds)
            for k in range(moved.shape[1]):
                tangent_forward(net, image, packed[e], moved[e, k], units, tangent)
                for lane in range(net.lanes):
                    i = b * net.lanes + lane
                    slope = -tangent[top[INTO] + y[dataset[e], i] * net.lanes + lane]
                    for c in range(top[N_OUT]):
                        slope += odds[c * net.lanes + lane] * tangent[top[INTO] + c * net.lanes + lane]
                    out[e, k, i] = slope


@compiled
def products(net, packed, moved, x, y, dataset, weights, gauss_newton, first, stop, out):
    """out (E, K, gradients / lanes) += Hessian or Gauss-Newton matrix of sum_i w_i loss_i times each direction."""
    units, deltas, bend = buffer(net.units, packed), buffer(net.units, packed), buffer(net.units, packed)
    tangent, turned = buffer(net.units, packed), buffer(net.units, packed)
    sums, odds = buffer(net.gradients, packed), buffer(net.plan[-1, N_OUT] * net.lanes, packed)
    none = sums[:0]
    for e in range(len(packed)):
        for b in range(first, stop):
            rows, image = slice(b * net.lanes, (b + 1) * net.lanes), x[dataset[e], b]
            if not np.any(weights[e][rows]):
                continue
            forward(net, image, packed[e], units)
            softmax(net, units, odds)
            if not gauss_newton:
                loss_deltas(net, odds, y[dataset[e]][rows], weights[e][rows], deltas)
                backward(net, packed[e], units, deltas, bend)
            for k in range(moved.shape[1]):
                tangent_forward(net, image, packed[e], moved[e, k], units, tangent)
                curved_deltas(net, odds, weights[e][rows], tangent, turned)
                sums[:] = 0
                if gauss_newton:
                    backward(net, packed[e], units, turned, none)
                else:
                    turned_backward(net, packed[e], moved[e, k], units, deltas, bend, tangent, turned)
                    tangent_sums(net, deltas, tangent, sums)
                layer_sums(net, image, units, turned, sums)
                add_lane_sums(out[e, k], 0, sums, 0, len(sums) // net.lanes)


@compiled
def example_rows(net, packed, unpack, x, y, weights, rank, first, stop, out):
    """Rows of single images: (images, rank, P) of one network packed (Q,), of the blocks first .. stop.

    rank 0: the gradient of each loss, as one row. Otherwise sqrt|w| times the rows of L^T J, J the Jacobian of the
    logits and L L^T = diag(p) - p p^T the Cholesky factors of Tanabe and Sagae (1992), of rank classes - 1:
    L[:, c] = sqrt(p_c q_c / q_(c-1)) (e_c - sum_(i > c) p_i / q_c e_i) with q_c = sum_(i > c) p_i.
    """
    units, deltas = buffer(net.units, packed), buffer(net.units, packed)
    top = net.plan[-1]
    sums, odds = buffer(net.gradients, packed), buffer(top[N_OUT] * net.lanes, packed)
    ones, none = np.ones(net.lanes, packed.dtype), sums[:0]
    for b in range(first, stop):
        rows, image = slice(b * net.lanes, (b + 1) * net.lanes), x[b]
        forward(net, image, packed, units)
        softmax(net, units, odds)
        for c in range(max(rank, 1)):
            if rank == 0:
                loss_deltas(net, odds, y[rows], ones, deltas)
            else:
                factor_deltas(net, odds, weights[rows], c, deltas)
            backward(net, packed, units, deltas, none)
            sums[:] = 0
            layer_sums(net, image, units, deltas, sums)
            for lane in range(net.lanes):
                i = (b - first) * net.lanes + lane
                if i < len(out):
                    for k in range(len(unpack)):
                        out[i, c, k] = sums[unpack[k] * net.lanes + lane]


@compiled
def hessian_columns(net, packed, columns, chosen, x, y, weights, first, stop, out):
    """out (P, gradients / lanes)[j] += column j of the Hessian for each j of `chosen`; one network packed (Q,)."""
    units, deltas, bend = buffer(net.units, packed), buffer(net.units, packed), buffer(net.units, packed)
    tangent, turned = buffer(net.units, packed), buffer(net.units, packed)
    sums, odds = buffer(net.gradients, packed), buffer(net.plan[-1, N_OUT] * net.lanes, packed)
    for b in range(first, stop):
        rows, image = slice(b * net.lanes, (b + 1) * net.lanes), x[b]
        if not np.any(weights[rows]):
            continue
        forward(net, image, packed, units)
        softmax(net, units, odds)
        loss_deltas(net, odds, y[rows], weights[rows], deltas)
        backward(net, packed, units, deltas, bend)
        for j in chosen:
            layer = columns[j, 0]
            start = net.plan[layer, GRADIENT]
            sums[start:] = 0
            top = net.plan[-1]
            if layer == len(net.plan) - 1:
                tangent[top[INTO] : top[INTO] + top[N_OUT] * net.lanes] = 0
            column(net, columns[j], image, packed, units, deltas, bend, odds, weights[rows], tangent, turned, sums)
            count = (net.plan[-1, AFTER] - start) // net.lanes
            add_lane_sums(out[j], start // net.lanes, sums, start, count)
