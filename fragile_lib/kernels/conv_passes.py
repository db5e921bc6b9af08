"""Passes over a small convolutional network, from the image up and down again, for one block of images.

A block is as many images as a vector register has lanes; its maps stay in the second-level cache throughout.

Buffers, in the positions of `conv_plan.Net`: units, the activations a of every layer; deltas, the derivative of the
weighted loss by every pre-activation z; tangent, the derivative of units along a direction of parameters (Pearlmutter
1994's R-operator); turned, that of deltas; bend, the factor -2 a dJ/da that the second derivative of tanh brings;
sums, the gradient of each image of the block.
"""

from __future__ import annotations

import numpy as np

from fragile_lib.kernels.conv_layers import (
    activate,
    add_bend,
    clear_input,
    convolve,
    keep_bend,
    outer,
    outer_bias,
    pool,
    pull,
    size,
    spread,
    times_slope,
)
from fragile_lib.kernels.conv_plan import BIAS, FROM, INTO, N_IN, N_OUT, SIDE_IN, SIDE_OUT, STRIDE
from fragile_lib.kernels.kernel_cache import compiled


@compiled
def forward(net, image, packed, units):
    """Fill `units` from an image block: activations of every layer and, last, the logits."""
    last = len(net.plan) - 1
    for layer in range(last + 1):
        p = net.plan[layer]
        if layer == last:
            pool(net, units)
        source = image if layer == 0 else units
        convolve(net, layer, source, units, packed, net.first, p[N_IN], p[BIAS])
        if layer < last:
            activate(net, units, p[INTO], size(net, layer))


@compiled
def softmax(net, units, odds):
    """odds (classes * lanes,) = softmax of the logits."""
    top = net.plan[-1]
    for lane in range(net.lanes):
        largest = units[top[INTO] + lane]
        for c in range(1, top[N_OUT]):
            largest = max(largest, units[top[INTO] + c * net.lanes + lane])
        total = units[0] * 0
        for c in range(top[N_OUT]):
            e = np.exp(units[top[INTO] + c * net.lanes + lane] - largest)
            odds[c * net.lanes + lane] = e
            total += e
        for c in range(top[N_OUT]):
            odds[c * net.lanes + lane] /= total


@compiled
def loss_deltas(net, odds, y, weights, deltas):
    """Deltas of the logits for the weighted cross entropy: w (p - e_y)."""
    top = net.plan[-1]
    for c in range(top[N_OUT]):
        for lane in range(net.lanes):
            hit = 1 if y[lane] == c else 0
            deltas[top[INTO] + c * net.lanes + lane] = weights[lane] * (odds[c * net.lanes + lane] - hit)


@compiled
def weighted_loss(net, units, odds, y, weights):
    """sum_i w_i loss_i of a block, in float64: z_top - z_y - log p_top, which no small p_y makes infinite."""
    top, total = net.plan[-1], 0.0
    for lane in range(net.lanes):
        best = lane
        for c in range(1, top[N_OUT]):
            if odds[c * net.lanes + lane] > odds[best]:
                best = c * net.lanes + lane
        behind = units[top[INTO] + best] - units[top[INTO] + y[lane] * net.lanes + lane]
        total += weights[lane] * (np.float64(behind) - np.log(np.float64(odds[best])))
    return total


@compiled
def add_cotangent(net, cotangent, deltas):
    """Add c (classes * lanes,) to the deltas of the logits."""
    into = net.plan[-1, INTO]
    for i in range(net.plan[-1, N_OUT] * net.lanes):
        deltas[into + i] += cotangent[i]


@compiled
def paired(net, cotangent, units):
    """sum_i <c_i, logits_i> of a block, in float64."""
    into, total = net.plan[-1, INTO], 0.0
    for i in range(net.plan[-1, N_OUT] * net.lanes):
        total += np.float64(cotangent[i]) * np.float64(units[into + i])
    return total


@compiled
def curved_deltas(net, odds, weights, tangent, turned):
    """turned = w (diag(p) - p p^T) tangent at the logits."""
    top = net.plan[-1]
    for lane in range(net.lanes):
        mean = odds[lane] * 0
        for c in range(top[N_OUT]):
            mean += odds[c * net.lanes + lane] * tangent[top[INTO] + c * net.lanes + lane]
        for c in range(top[N_OUT]):
            at = top[INTO] + c * net.lanes + lane
            turned[at] = weights[lane] * odds[c * net.lanes + lane] * (tangent[at] - mean)


@compiled
def backward(net, packed, units, deltas, bend):
    """Pull the logits' deltas back to every layer; fill `bend` too unless it is empty."""
    last = len(net.plan) - 1
    for layer in range(last, 0, -1):
        clear_input(net, layer, deltas)
        pull(net, layer, deltas, deltas, packed)
        if layer == last:
            spread(net, deltas)
        at, count = net.plan[layer - 1, INTO], size(net, layer - 1)
        if len(bend):
            keep_bend(net, units, deltas, bend, at, count)
        times_slope(net, units, deltas, at, count)


@compiled
def layer_sums(net, image, units, deltas, sums):
    """Add the gradient of every parameter, for each image, to `sums`."""
    for layer in range(len(net.plan)):
        p = net.plan[layer]
        source = image if layer == 0 else units
        outer(net, layer, deltas, source, sums, net.first, p[N_IN])
        outer_bias(net, layer, deltas, sums)


@compiled
def tangent_forward(net, image, packed, moved, units, tangent):
    """Derivative of `units` along the direction whose packed weights are `moved`."""
    last = len(net.plan) - 1
    for layer in range(last + 1):
        p = net.plan[layer]
        if layer == last:
            pool(net, tangent)
        source = image if layer == 0 else units
        convolve(net, layer, source, tangent, moved, net.first, p[N_IN], p[BIAS])
        if layer > 0:
            convolve(net, layer, tangent, tangent, packed, net.first, p[N_IN], net.add)
        if layer < last:
            times_slope(net, units, tangent, p[INTO], size(net, layer))


@compiled
def turned_backward(net, packed, moved, units, deltas, bend, tangent, turned):
    """Pull the logits' turned deltas back through weights, their direction and the activation's slope and bend."""
    last = len(net.plan) - 1
    for layer in range(last, 0, -1):
        clear_input(net, layer, turned)
        pull(net, layer, turned, turned, packed)
        pull(net, layer, deltas, turned, moved)
        if layer == last:
            spread(net, turned)
        at, count = net.plan[layer - 1, INTO], size(net, layer - 1)
        times_slope(net, units, turned, at, count)
        add_bend(bend, tangent, turned, at, count)


@compiled
def tangent_sums(net, deltas, tangent, sums):
    """Add delta[z] tangent[a] of every layer above the first to `sums`."""
    for layer in range(1, len(net.plan)):
        p = net.plan[layer]
        outer(net, layer, deltas, tangent, sums, net.first, p[N_IN])


@compiled
def factor_deltas(net, odds, weights, c, deltas):
    """Deltas of the logits: column c of L times sqrt|w|."""
    top = net.plan[-1]
    for lane in range(net.lanes):
        rest = odds[lane] * 0
        for i in range(c + 1, top[N_OUT]):
            rest += odds[i * net.lanes + lane]
        p = odds[c * net.lanes + lane]
        scale = np.sqrt(abs(weights[lane]) * p * rest / (p + rest)) if p + rest > 0 else rest * 0
        for i in range(top[N_OUT]):
            at = top[INTO] + i * net.lanes + lane
            if i < c or rest == 0:
                deltas[at] = 0
            elif i == c:
                deltas[at] = scale
            else:
                deltas[at] = -scale * odds[i * net.lanes + lane] / rest


@compiled
def start_column(net, which, image, units, tangent):
    """Tangent of one layer's maps along one of its parameters, `which` of `Layout.columns`: all in one channel."""
    layer, o, c, ky, kx = which
    p = net.plan[layer]
    side, wide, stride = p[SIDE_OUT], p[SIDE_IN], p[STRIDE]
    into = p[INTO] + o * side * side * net.lanes
    if c < 0:
        tangent[into : into + side * side * net.lanes] = 1
    else:
        source = image if layer == 0 else units
        for y in range(side):
            s = p[FROM] + ((c * wide + y * stride + ky) * wide + kx) * net.lanes
            at = into + y * side * net.lanes
            for _x in range(side):
                for lane in range(net.lanes):
                    tangent[at + lane] = source[s + lane]
                at, s = at + net.lanes, s + stride * net.lanes
    if layer < len(net.plan) - 1:
        times_slope(net, units, tangent, into, side * side * net.lanes)


@compiled
def column(net, which, image, packed, units, deltas, bend, odds, weights, tangent, turned, sums):
    """One column of the Hessian for a block, in the rows of its own layer and those above, added to `sums`.

    Within its own layer only rows of the same or later input channels are made; symmetry gives the others.
    """
    layer, o, c = which[0], which[1], which[2]
    last = len(net.plan) - 1
    start_column(net, which, image, units, tangent)
    for upper in range(layer + 1, last + 1):
        p = net.plan[upper]
        if upper == last:
            pool(net, tangent)
        lowest, highest = (o, o + 1) if upper == layer + 1 else (net.first, p[N_IN])
        convolve(net, upper, tangent, tangent, packed, lowest, highest, net.zeros)
        if upper < last:
            times_slope(net, units, tangent, p[INTO], size(net, upper))
    curved_deltas(net, odds, weights, tangent, turned)
    for upper in range(last, layer, -1):
        p = net.plan[upper]
        outer(net, upper, turned, units, sums, net.first, p[N_IN])
        outer_bias(net, upper, turned, sums)
        lowest, highest = (o, o + 1) if upper == layer + 1 else (net.first, p[N_IN])
        outer(net, upper, deltas, tangent, sums, lowest, highest)
        clear_input(net, upper, turned)
        pull(net, upper, turned, turned, packed)
        if upper == last:
            spread(net, turned)
        at, count = net.plan[upper - 1, INTO], size(net, upper - 1)
        times_slope(net, units, turned, at, count)
        if upper == layer + 1:
            count //= net.plan[layer, N_OUT]
            at += o * count
        add_bend(bend, tangent, turned, at, count)
    p = net.plan[layer]
    source = image if layer == 0 else units
    outer(net, layer, turned, source, sums, max(c, 0), p[N_IN])
    if c < 0:
        outer_bias(net, layer, turned, sums)
