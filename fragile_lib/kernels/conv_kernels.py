"""Kernels for small convolutional networks: one layer of a block of images, passes up and down, drivers over blocks.

A block is as many images as a vector register has lanes; its maps stay in the second-level cache throughout. Every
driver has a reference in `objectives.base.Objective`, built on torch.func, against which it is tested.

Buffers, in the positions of `conv_plan.Net`: units, the activations a of every layer; deltas, the derivative of the
weighted loss by every pre-activation z; tangent, the derivative of units along a direction of parameters (Pearlmutter
1994's R-operator); turned, that of deltas; bend, the factor -2 a dJ/da that the second derivative of tanh brings;
sums, the gradient of each image of the block.

What the drivers take: parameters packed (E, Q) as `conv_plan.Layout` says; data sets x (S, blocks, pixels * lanes) and
y (S, blocks * lanes), weights (E, blocks * lanes); `first` and `stop` are blocks. What is added up is in the order of a
buffer of gradients.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from fragile_lib.kernels.conv_plan import (
    AFTER,
    BACK,
    BIAS,
    BIAS_GRADIENT,
    FORWARD,
    FROM,
    GRADIENT,
    INTO,
    KERNEL,
    N_IN,
    N_OUT,
    PULLS,
    RELU,
    SIDE_IN,
    SIDE_OUT,
    SPANS,
    STRIDE,
    TAPS,
)
from fragile_lib.kernels.conv_tiles import ROWS, add_lane_sums, outer1, outer3, tanh_in_place, tile1, tile2, tile3
from fragile_lib.kernels.kernel_cache import compiled

vectorised = partial(compiled, fastmath={"contract", "nsz"})  # NaN and infinity keep their meaning


@compiled
def buffer(size, like):
    """`size` zeros of the type of `like`, from the start of a cache line; channels never written to stay zero."""
    raw = np.zeros(size + 64 // like.itemsize, like.dtype)
    skip = (-raw.ctypes.data) % 64 // like.itemsize
    return raw[skip : skip + size]


@compiled
def tiles(columns, out, at, row, column, source, start, offsets, k0, count, step, packed, w, bias):
    """A row of an output map: `columns` columns by tiles of three, and one of what is left over."""
    while columns >= 3:
        tile3(out, at, row, column, source, start, offsets, k0, count, step, packed, w, bias)
        at, start, columns = at + 3 * column, start + 3 * step, columns - 3
    if columns == 2:
        tile2(out, at, row, column, source, start, offsets, k0, count, step, packed, w, bias)
    elif columns == 1:
        tile1(out, at, row, column, source, start, offsets, k0, count, step, packed, w, bias)


@compiled
def convolve(net, layer, source, out, packed, c_first, c_stop, bias):
    """z of a layer into `out`: packed[bias] + sum over input channels c_first .. c_stop of W a.

    For bias < 0 it is added to what is there; net.zeros is a bias of zero.
    """
    p = net.plan[layer]
    step, line = p[STRIDE] * net.lanes, p[SIDE_IN] * net.lanes
    row = p[SIDE_OUT] * p[SIDE_OUT] * net.lanes
    taps = p[N_IN] * p[KERNEL] * p[KERNEL]
    first, count = c_first * p[KERNEL] * p[KERNEL], (c_stop - c_first) * p[KERNEL] * p[KERNEL]
    k0 = p[TAPS] + first
    for block in range((p[N_OUT] + ROWS - 1) // ROWS):
        w = p[FORWARD] + (block * taps + first) * ROWS
        b = bias + block * ROWS if bias >= 0 else bias
        for y in range(p[SIDE_OUT]):
            at = p[INTO] + block * ROWS * row + y * p[SIDE_OUT] * net.lanes
            s = p[FROM] + y * p[STRIDE] * line
            tiles(p[SIDE_OUT], out, at, row, net.lanes, source, s, net.taps, k0, count, step, packed, w, b)


@compiled
def clear_input(net, layer, out):
    """Set the maps that are a layer's input to zero, filled-up channels too."""
    p = net.plan[layer]
    count = (p[N_IN] + ROWS - 1) // ROWS * ROWS * p[SIDE_IN] * p[SIDE_IN] * net.lanes
    out[p[FROM] : p[FROM] + count] = 0


@compiled
def pull(net, layer, source, out, packed):
    """Pull deltas of a layer's z back to its input: out[a] += sum W source[z]."""
    p = net.plan[layer]
    step, side, wide = p[STRIDE] * net.lanes, p[SIDE_OUT], p[SIDE_IN]
    row = wide * wide * net.lanes
    terms = p[KERNEL] * p[N_OUT]
    for block in range((p[N_IN] + ROWS - 1) // ROWS):
        for iy in range(wide):
            line = p[FROM] + block * ROWS * row + iy * wide * net.lanes
            first, count = net.spans[p[SPANS] + iy, 0], net.spans[p[SPANS] + iy, 1]
            if count == 0:
                continue
            k0 = p[PULLS] + first
            for kx in range(p[KERNEL]):
                w = p[BACK] + ((block * p[KERNEL] + kx) * terms + first) * ROWS
                at = line + kx * net.lanes
                s = p[INTO] + (iy // p[STRIDE]) * side * net.lanes
                tiles(side, out, at, row, step, source, s, net.pulls, k0, count, net.lanes, packed, w, net.add)


@compiled
def outer(net, layer, deltas, source, sums, c_first, c_stop):
    """Gradient of a layer's weights from input channels c_first .. c_stop, added to `sums`: delta[z] a, per image."""
    p = net.plan[layer]
    side, wide, kernel = p[SIDE_OUT], p[SIDE_IN], p[KERNEL]
    plane, line = side * side * net.lanes, side * net.lanes
    row = p[N_IN] * kernel * kernel * net.lanes
    step, jump = p[STRIDE] * net.lanes, p[STRIDE] * wide * net.lanes
    for block in range((p[N_OUT] + ROWS - 1) // ROWS):
        d = p[INTO] + block * ROWS * plane
        for c in range(c_first, c_stop):
            for ky in range(kernel):
                at = p[GRADIENT] + block * ROWS * row + (c * kernel + ky) * kernel * net.lanes
                s = p[FROM] + (c * wide + ky) * wide * net.lanes
                if kernel == 3:
                    outer3(sums, at, row, net.lanes, deltas, d, plane, line, net.lanes,
                           source, s, net.lanes, jump, step, side, side)  # fmt: skip
                else:
                    outer1(sums, at, row, net.lanes, deltas, d, plane, line, net.lanes,
                           source, s, net.lanes, jump, step, side, side)  # fmt: skip


@compiled
def outer_bias(net, layer, deltas, sums):
    """Gradient of a layer's biases, added to `sums`."""
    p = net.plan[layer]
    side = p[SIDE_OUT]
    plane = side * side * net.lanes
    for block in range((p[N_OUT] + ROWS - 1) // ROWS):
        at, d = p[BIAS_GRADIENT] + block * ROWS * net.lanes, p[INTO] + block * ROWS * plane
        outer1(sums, at, net.lanes, net.lanes, deltas, d, plane, side * net.lanes, net.lanes,
               net.ones, 0, 0, 0, 0, side, side)  # fmt: skip


@compiled
def size(net, layer):
    """The number of elements of a layer's maps, filled-up channels not counted."""
    p = net.plan[layer]
    return p[N_OUT] * p[SIDE_OUT] * p[SIDE_OUT] * net.lanes


@compiled
def pool(net, maps):
    """The mean over space of the last maps, into its place."""
    top = net.plan[-1]
    below = net.plan[-2]
    area = below[SIDE_OUT] * below[SIDE_OUT]
    for c in range(top[N_IN]):
        at, s = top[FROM] + c * net.lanes, below[INTO] + c * area * net.lanes
        for lane in range(net.lanes):
            maps[at + lane] = 0
        for place in range(area):
            for lane in range(net.lanes):
                maps[at + lane] += maps[s + place * net.lanes + lane] / area


@compiled
def spread(net, deltas):
    """The pull-back of `_pool`."""
    top = net.plan[-1]
    below = net.plan[-2]
    area = below[SIDE_OUT] * below[SIDE_OUT]
    for c in range(top[N_IN]):
        at, s = top[FROM] + c * net.lanes, below[INTO] + c * area * net.lanes
        for place in range(area):
            for lane in range(net.lanes):
                deltas[s + place * net.lanes + lane] = deltas[at + lane] / area


@vectorised
def times_slope(net, units, values, at, count):
    """Multiply by the activation's derivative: 1 - a^2, or for ReLU 1 where a > 0."""
    a, v, one = units[at : at + count], values[at : at + count], net.ones[0]
    if net.activation == RELU:
        for i in range(count):
            v[i] = v[i] if a[i] > 0 else one - one
    else:
        for i in range(count):
            v[i] *= one - a[i] * a[i]


@vectorised
def activate(net, units, at, count):
    """The activation, in place."""
    if net.activation == RELU:
        a, zero = units[at : at + count], net.ones[0] - net.ones[0]
        for i in range(count):
            a[i] = zero if a[i] < zero else a[i]  # NaN stays
    else:
        tanh_in_place(units, at, count // net.lanes)


@vectorised
def add_bend(bend, tangent, turned, at, count):
    """turned += bend * tangent: what the second derivative of the activation brings."""
    b, t, out = bend[at : at + count], tangent[at : at + count], turned[at : at + count]
    for i in range(count):
        out[i] += b[i] * t[i]


@vectorised
def keep_bend(net, units, deltas, bend, at, count):
    """bend = -2 a dJ/da, zero for ReLU; `deltas` hold dJ/da before the slope is put in."""
    a, g, b = units[at : at + count], deltas[at : at + count], bend[at : at + count]
    if net.activation == RELU:
        b[:] = 0
    else:
        for i in range(count):
            b[i] = -(a[i] + a[i]) * g[i]


# -- passes over one block ---------------------------------------------------------------------------------------------


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
def backward(net, packed, moved, units, deltas, bend, tangent, pulled, turning):
    """Pull what `pulled` holds at the logits back to every layer.

    When `turning`, `pulled` are the derivatives of `deltas`: through weights, their direction `moved` and the
    activation's slope and bend. Otherwise `bend` is filled, unless it is empty.
    """
    last = len(net.plan) - 1
    for layer in range(last, 0, -1):
        clear_input(net, layer, pulled)
        pull(net, layer, pulled, pulled, packed)
        if turning:
            pull(net, layer, deltas, pulled, moved)
        if layer == last:
            spread(net, pulled)
        at, count = net.plan[layer - 1, INTO], size(net, layer - 1)
        if len(bend) and not turning:
            keep_bend(net, units, pulled, bend, at, count)
        times_slope(net, units, pulled, at, count)
        if turning:
            add_bend(bend, tangent, pulled, at, count)


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


# -- drivers over all blocks -------------------------------------------------------------------------------------------


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
            backward(net, packed[e], packed[e], units, deltas, none, none, deltas, False)
            layer_sums(net, image, units, deltas, sums)
        add_lane_sums(out[e], 0, sums, 0, len(sums) // net.lanes)


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
                backward(net, packed[e], packed[e], units, deltas, bend, none, deltas, False)
            for k in range(moved.shape[1]):
                tangent_forward(net, image, packed[e], moved[e, k], units, tangent)
                curved_deltas(net, odds, weights[e][rows], tangent, turned)
                sums[:] = 0
                if gauss_newton:
                    backward(net, packed[e], packed[e], units, deltas, none, none, turned, False)
                else:
                    backward(net, packed[e], moved[e, k], units, deltas, bend, tangent, turned, True)
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
            backward(net, packed, packed, units, deltas, none, none, deltas, False)
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
        backward(net, packed, packed, units, deltas, bend, tangent, deltas, False)
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
