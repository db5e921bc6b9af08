"""One layer of a small convolutional network, up, down and in its gradient, for one block of images.

A block is as many images as a vector register has lanes. All names are those of `conv_passes`.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from fragile_lib.kernels.conv_plan import (
    BACK,
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
from fragile_lib.kernels.conv_tiles import ROWS, outer1, outer3, tanh_in_place, tile1, tile2, tile3
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
