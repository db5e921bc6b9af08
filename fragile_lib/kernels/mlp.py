"""Fused CPU kernels for stacks of small multilayer perceptrons in float64.

A network of a few hundred parameters is too small for tensor libraries: the cost of a step is the cost of starting
its operations. Here a whole gradient descent runs inside one compiled loop, one network at a time, so that parameters,
activations and gradients of the network stay in the first-level cache, and the arithmetic is vectorised over the
training examples, which lie contiguously. Every routine has a reference in `objective.py` built on torch.func, against
which it is tested.

Letters: E stack size, P parameters, n examples, S datasets, U units over all layers. Layout of a parameter vector: for
each layer the weight (out, in) row by row, then the bias (out,), the order of `torch.nn.Linear`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Activations as numbers: a positive one is the sharpness beta of softplus.
RELU, TANH = 0.0, -1.0

# Sums may be reordered and contracted to fused multiply-adds; NaN and infinity keep their meaning, so that a diverged
# network is seen as such.
_FAST = {"reassoc", "contract", "nsz"}

_LOG2E = 1.4426950408889634
_LN2_HIGH = 0.693145751953125
_LN2_LOW = 1.42860682030941723212e-6
_SHIFT = 6755399441055744.0  # 1.5 * 2**52: adding it rounds to an integer held in the low bits


@njit(cache=True, inline="never", fastmath={"contract"}, nogil=True)
def _exp_rows(values, bits):
    """Replace each entry of `values` (R, n) by its exponential; `bits` is an int64 view of the same memory's twin.

    Argument reduction by multiples of ln 2 and a Taylor polynomial of degree 13 on [-ln2/2, ln2/2] (Cody and Waite
    1980); the relative error is below 4e-16 on [-700, 700], beyond which the argument is clamped.
    """
    shifted = bits.view(np.float64)
    for r in range(values.shape[0]):
        for s in range(values.shape[1]):
            x = min(max(values[r, s], -700.0), 700.0)
            shifted[s] = x * _LOG2E + _SHIFT
            k = shifted[s] - _SHIFT
            x = (x - k * _LN2_HIGH) - k * _LN2_LOW
            p = 1.0 / 6227020800.0
            p = p * x + 1.0 / 479001600.0
            p = p * x + 1.0 / 39916800.0
            p = p * x + 1.0 / 3628800.0
            p = p * x + 1.0 / 362880.0
            p = p * x + 1.0 / 40320.0
            p = p * x + 1.0 / 5040.0
            p = p * x + 1.0 / 720.0
            p = p * x + 1.0 / 120.0
            p = p * x + 1.0 / 24.0
            p = p * x + 1.0 / 6.0
            p = p * x + 0.5
            p = p * x + 1.0
            values[r, s] = p * x + 1.0
        # 2**k from the low bits of the shifted number, placed in the exponent field
        for s in range(values.shape[1]):
            bits[s] = (bits[s] + 1023) << 52
        for s in range(values.shape[1]):
            values[r, s] *= shifted[s]


@njit(cache=True, inline="never", fastmath=_FAST, nogil=True)
def _affine(weights, start, n_in, n_out, source, first, target, into, add):
    """target[into + j] = bias_j + sum_i W[j, i] source[first + i], rows of length n; four inputs a pass.

    With `add` the sum is added to what is there, without the bias.
    """
    n = source.shape[1]
    for j in range(n_out):
        row = start + j * n_in
        b = weights[start + n_in * n_out + j]
        z = target[into + j]
        i = 0
        if n_in >= 4 and not add:
            w0, w1, w2, w3 = weights[row], weights[row + 1], weights[row + 2], weights[row + 3]
            a0, a1, a2, a3 = source[first], source[first + 1], source[first + 2], source[first + 3]
            for s in range(n):
                z[s] = b + w0 * a0[s] + w1 * a1[s] + w2 * a2[s] + w3 * a3[s]
            i = 4
        elif not add:
            z[:] = b
        while i + 4 <= n_in:
            w0, w1, w2, w3 = weights[row + i], weights[row + i + 1], weights[row + i + 2], weights[row + i + 3]
            a0, a1, a2, a3 = source[first + i], source[first + i + 1], source[first + i + 2], source[first + i + 3]
            for s in range(n):
                z[s] += w0 * a0[s] + w1 * a1[s] + w2 * a2[s] + w3 * a3[s]
            i += 4
        while i < n_in:
            w0, a0 = weights[row + i], source[first + i]
            for s in range(n):
                z[s] += w0 * a0[s]
            i += 1


@njit(cache=True, inline="never", fastmath=_FAST, nogil=True)
def _affine_transposed(weights, start, n_in, n_out, source, first, target, into, add):
    """target[into + i] (+)= sum_j W[j, i] source[first + j]: the pull-back of `_affine`; four terms a pass."""
    n = source.shape[1]
    for i in range(n_in):
        t = target[into + i]
        k = start + i
        j = 0
        if n_out >= 4 and not add:
            w0, w1, w2, w3 = weights[k], weights[k + n_in], weights[k + 2 * n_in], weights[k + 3 * n_in]
            d0, d1, d2, d3 = source[first], source[first + 1], source[first + 2], source[first + 3]
            for s in range(n):
                t[s] = w0 * d0[s] + w1 * d1[s] + w2 * d2[s] + w3 * d3[s]
            j = 4
        elif n_out == 3 and not add:
            w0, w1, w2 = weights[k], weights[k + n_in], weights[k + 2 * n_in]
            d0, d1, d2 = source[first], source[first + 1], source[first + 2]
            for s in range(n):
                t[s] = w0 * d0[s] + w1 * d1[s] + w2 * d2[s]
            j = 3
        elif not add:
            t[:] = 0.0
        while j + 4 <= n_out:
            k = start + j * n_in + i
            w0, w1, w2, w3 = weights[k], weights[k + n_in], weights[k + 2 * n_in], weights[k + 3 * n_in]
            d0, d1, d2, d3 = source[first + j], source[first + j + 1], source[first + j + 2], source[first + j + 3]
            for s in range(n):
                t[s] += w0 * d0[s] + w1 * d1[s] + w2 * d2[s] + w3 * d3[s]
            j += 4
        while j < n_out:
            w0, d0 = weights[start + j * n_in + i], source[first + j]
            for s in range(n):
                t[s] += w0 * d0[s]
            j += 1


@njit(cache=True, inline="never", fastmath=_FAST, nogil=True)
def _outer_sum(deltas, first_out, n_out, source, first_in, n_in, gradient, start, add):
    """gradient of one layer: W[j, i] = sum_s delta[j, s] a[i, s], b[j] = sum_s delta[j, s]; with `add` W += alone."""
    n = source.shape[1]
    for j in range(n_out):
        d = deltas[first_out + j]
        row = start + j * n_in
        i = 0
        while i + 4 <= n_in:
            a0, a1 = source[first_in + i], source[first_in + i + 1]
            a2, a3 = source[first_in + i + 2], source[first_in + i + 3]
            t0, t1, t2, t3 = 0.0, 0.0, 0.0, 0.0
            for s in range(n):
                t0 += d[s] * a0[s]
                t1 += d[s] * a1[s]
                t2 += d[s] * a2[s]
                t3 += d[s] * a3[s]
            if add:
                gradient[row + i] += t0
                gradient[row + i + 1] += t1
                gradient[row + i + 2] += t2
                gradient[row + i + 3] += t3
            else:
                gradient[row + i], gradient[row + i + 1] = t0, t1
                gradient[row + i + 2], gradient[row + i + 3] = t2, t3
            i += 4
        while i < n_in:
            a0 = source[first_in + i]
            t0 = 0.0
            for s in range(n):
                t0 += d[s] * a0[s]
            gradient[row + i] = gradient[row + i] + t0 if add else t0
            i += 1
        if not add:
            t0 = 0.0
            for s in range(n):
                t0 += d[s]
            gradient[start + n_in * n_out + j] = t0


@njit(cache=True, inline="never", fastmath=_FAST, nogil=True)
def _activate(values, slopes, first, count, activation, bits):
    """Apply the activation to rows first .. first + count of `values` in place; its derivative goes to `slopes`."""
    n = values.shape[1]
    if activation == RELU:
        for r in range(first, first + count):
            for s in range(n):
                slopes[r, s] = 1.0 if values[r, s] > 0.0 else 0.0
                values[r, s] = max(values[r, s], 0.0)
    elif activation == TANH:  # tanh(z) = 1 - 2 / (exp(2 z) + 1)
        rows = values[first : first + count]
        for r in range(count):
            for s in range(n):
                rows[r, s] = 2.0 * rows[r, s]
        _exp_rows(rows, bits)
        for r in range(count):
            for s in range(n):
                rows[r, s] = 1.0 - 2.0 / (rows[r, s] + 1.0)
                slopes[first + r, s] = 1.0 - rows[r, s] * rows[r, s]
    else:  # softplus of sharpness beta = activation: log(1 + exp(beta z)) / beta
        for r in range(first, first + count):
            for s in range(n):
                z = values[r, s]
                tail = np.exp(-activation * abs(z))
                values[r, s] = max(z, 0.0) + np.log1p(tail) / activation
                slopes[r, s] = (1.0 if z > 0.0 else tail) / (1.0 + tail)


@njit(cache=True, inline="never", fastmath=_FAST, nogil=True)
def _times_slope(target, slopes, first, count):
    """Multiply rows first .. first + count of `target` by the activation's derivative."""
    for r in range(first, first + count):
        for s in range(target.shape[1]):
            target[r, s] *= slopes[r, s]


@njit(cache=True, inline="never", nogil=True)
def _forward(theta, x, sizes, activation, units, slopes, bits):
    """Fill `units` (U, n) with the inputs, each layer's activations and, last, the logits; `slopes` likewise."""
    units[: sizes[0]] = x
    first, start = 0, 0
    for layer in range(sizes.shape[0] - 1):
        n_in, n_out = sizes[layer], sizes[layer + 1]
        _affine(theta, start, n_in, n_out, units, first, units, first + n_in, False)
        if layer < sizes.shape[0] - 2:
            _activate(units, slopes, first + n_in, n_out, activation, bits)
        first += n_in
        start += n_in * n_out + n_out


@njit(cache=True, inline="never", fastmath=_FAST, nogil=True)
def _softmax(units, deltas, top, classes, bits):
    """deltas[top:] = softmax over classes of the logits units[top:]."""
    n = units.shape[1]
    largest = deltas[top - 1]  # a row of scratch below the logits' rows
    largest[:] = units[top]
    for c in range(1, classes):
        for s in range(n):
            largest[s] = max(largest[s], units[top + c, s])
    rows = deltas[top : top + classes]
    for c in range(classes):
        for s in range(n):
            rows[c, s] = units[top + c, s] - largest[s]
    _exp_rows(rows, bits)
    largest[:] = 0.0
    for c in range(classes):
        for s in range(n):
            largest[s] += rows[c, s]
    for s in range(n):
        largest[s] = 1.0 / largest[s]  # one division a column; divisions cost several multiplications
    for c in range(classes):
        for s in range(n):
            rows[c, s] *= largest[s]


@njit(cache=True, inline="never", fastmath=_FAST, nogil=True)
def _tangent_slope(second, deltas, units, slopes, tangent, first, count, activation):
    """second += sigma''(z) R{z} delta_a, written through R{a} = sigma' R{z} and delta_z = sigma' delta_a.

    With sigma'' = c sigma', c = -2 a for tanh and beta (1 - sigma') for softplus, this is c R{a} delta_z / sigma'.
    """
    for r in range(first, first + count):
        for s in range(units.shape[1]):
            slope = slopes[r, s]
            c = -2.0 * units[r, s] if activation == TANH else activation * (1.0 - slope)
            second[r, s] += c * tangent[r, s] * deltas[r, s] / max(slope, 1e-300)


@njit(cache=True, inline="never", nogil=True)
def _backward(theta, v, sizes, activation, turning, units, slopes, deltas, tangent, moved):
    """Pull what `moved` (U, n) holds at the logits back to every hidden layer.

    When `turning`, `moved` are the derivatives of `deltas` along v, whose units have the derivatives `tangent`.
    """
    start, first = theta.shape[0], units.shape[0] - sizes[-1]
    for layer in range(sizes.shape[0] - 2, 0, -1):
        n_in, n_out = sizes[layer], sizes[layer + 1]
        start -= n_in * n_out + n_out
        first -= n_in
        _affine_transposed(theta, start, n_in, n_out, moved, first + n_in, moved, first, False)
        if turning:
            _affine_transposed(v, start, n_in, n_out, deltas, first + n_in, moved, first, True)
        _times_slope(moved, slopes, first, n_in)
        if turning and activation != RELU:
            _tangent_slope(moved, deltas, units, slopes, tangent, first, n_in, activation)


@njit(cache=True, inline="never", nogil=True)
def _deltas(theta, weight, x, y, sizes, activation, units, slopes, deltas, odds, bits):
    """Forward and backward pass: `deltas` (U, n) = d(sum_i w_i loss_i) / d(pre-activation of each unit).

    The softmax of the logits goes to `odds` (classes, n), unless it is empty.
    """
    top = units.shape[0] - sizes[-1]
    _forward(theta, x, sizes, activation, units, slopes, bits)
    _softmax(units, deltas, top, sizes[-1], bits)
    if odds.shape[0]:
        odds[:] = deltas[top:]
    for s in range(x.shape[1]):
        deltas[top + y[s], s] -= 1.0
    for c in range(sizes[-1]):
        deltas[top + c] *= weight
    _backward(theta, theta, sizes, activation, False, units, slopes, deltas, deltas, deltas)


@njit(cache=True, inline="never", nogil=True)
def _buffers(sizes, n):
    """Five arrays (U, n) for units, slopes, deltas and what moves them; (classes, n) for odds; (n,) for `_exp_rows`."""
    units, odds = np.empty((sizes.sum(), n)), np.empty((sizes[-1], n))
    slopes, deltas = np.empty_like(units), np.empty_like(units)
    return units, slopes, deltas, np.empty_like(units), np.empty_like(units), odds, np.empty(n, np.int64)


@njit(cache=True, inline="never", nogil=True)
def _layer_sums(sizes, deltas, units, gradient, add):
    """The gradient (P,) of every layer from its deltas and its inputs.

    With `add` that of weights above the first layer alone, added to what is there: the images have no tangent.
    """
    first, start = 0, 0
    for layer in range(sizes.shape[0] - 1):
        n_in, n_out = sizes[layer], sizes[layer + 1]
        if layer > 0 or not add:
            _outer_sum(deltas, first + n_in, n_out, units, first, n_in, gradient, start, add)
        first += n_in
        start += n_in * n_out + n_out


@njit(cache=True, inline="never", fastmath=_FAST, nogil=True)
def _momentum_step(theta, velocity, gradient, decay, rate, momentum):
    """velocity = momentum velocity + gradient + decay theta; theta -= rate velocity (torch.optim.SGD's form)."""
    for p in range(theta.shape[0]):
        velocity[p] = momentum * velocity[p] + gradient[p] + decay[p] * theta[p]
        theta[p] -= rate * velocity[p]


@njit(cache=True, nogil=True)
def descend(theta, velocity, weights, x, y, dataset, sizes, activation, decay, rate, momentum, steps):
    """Run `steps` of gradient descent with momentum on each network of the stack, in place.

    theta, velocity (E, P); weights (E, n); x (S, d, n) features with the examples contiguous; y (S, n) labels;
    dataset (E,) which of the S each network sees; decay (P,) the L2 coefficient of each parameter.
    """
    units, slopes, deltas, _, _, odds, bits = _buffers(sizes, x.shape[2])
    gradient, none = np.empty(theta.shape[1]), odds[:0]
    for e in range(theta.shape[0]):
        d = dataset[e]
        for _ in range(steps):
            _deltas(theta[e], weights[e], x[d], y[d], sizes, activation, units, slopes, deltas, none, bits)
            _layer_sums(sizes, deltas, units, gradient, False)
            _momentum_step(theta[e], velocity[e], gradient, decay, rate, momentum)


@njit(cache=True, nogil=True)
def gradients(theta, weights, x, y, dataset, sizes, activation, out):
    """out (E, P) = grad_theta sum_i w_i loss_i for each network; no L2 term."""
    units, slopes, deltas, _, _, odds, bits = _buffers(sizes, x.shape[2])
    for e in range(theta.shape[0]):
        d = dataset[e]
        _deltas(theta[e], weights[e], x[d], y[d], sizes, activation, units, slopes, deltas, odds[:0], bits)
        _layer_sums(sizes, deltas, units, out[e], False)


@njit(cache=True, nogil=True)
def logits(theta, x, _y, dataset, sizes, activation, out):
    """out (E, classes, n) = the networks' logits."""
    units, slopes, _, _, _, _, bits = _buffers(sizes, x.shape[2])
    for e in range(theta.shape[0]):
        _forward(theta[e], x[dataset[e]], sizes, activation, units, slopes, bits)
        out[e] = units[units.shape[0] - sizes[-1] :]


@njit(cache=True, inline="never", nogil=True)
def _tangent_forward(theta, v, sizes, units, slopes, tangent):
    """`tangent` (U, n): derivative of `units` along the parameter direction v (Pearlmutter 1994's R-operator)."""
    tangent[: sizes[0]] = 0.0
    first, start = 0, 0
    for layer in range(sizes.shape[0] - 1):
        n_in, n_out = sizes[layer], sizes[layer + 1]
        into = first + n_in
        _affine(v, start, n_in, n_out, units, first, tangent, into, False)
        if layer > 0:
            _affine(theta, start, n_in, n_out, tangent, first, tangent, into, True)
        if layer < sizes.shape[0] - 2:
            _times_slope(tangent, slopes, into, n_out)
        first += n_in
        start += n_in * n_out + n_out


@njit(cache=True, inline="never", fastmath=_FAST, nogil=True)
def _tangent_softmax(probabilities, weight, tangent, top, out, classes):
    """out[top + c] = w p_c (Rz_c - sum_k p_k Rz_k): the loss's Hessian at the logits applied to their tangent."""
    n = weight.shape[0]
    mean = out[top - 1]
    mean[:] = 0.0
    for c in range(classes):
        for s in range(n):
            mean[s] += probabilities[c, s] * tangent[top + c, s]
    for c in range(classes):
        for s in range(n):
            out[top + c, s] = weight[s] * probabilities[c, s] * (tangent[top + c, s] - mean[s])


@njit(cache=True, inline="never", nogil=True)
def _product(
    theta, v, weight, probabilities, sizes, activation, gauss_newton, units, slopes, deltas, tangent, second, out
):
    """out (P,) = H v or G v of sum_i w_i loss_i, given the forward and backward pass in `units` and `deltas`."""
    _tangent_forward(theta, v, sizes, units, slopes, tangent)
    _tangent_softmax(probabilities, weight, tangent, units.shape[0] - sizes[-1], second, sizes[-1])
    _backward(theta, v, sizes, activation, not gauss_newton, units, slopes, deltas, tangent, second)
    _layer_sums(sizes, second, units, out, False)
    if not gauss_newton:
        _layer_sums(sizes, deltas, tangent, out, True)


@njit(cache=True, nogil=True)
def products(theta, v, weights, x, y, dataset, sizes, activation, gauss_newton, out):
    """out (E, K, P) = curvature of sum_i w_i loss_i times each v (E, K, P); Hessian or Gauss-Newton, no L2 term."""
    units, slopes, deltas, tangent, second, probabilities, bits = _buffers(sizes, x.shape[2])
    for e in range(theta.shape[0]):
        d = dataset[e]
        network = theta[e], weights[e], x[d], y[d], sizes, activation
        _deltas(*network, units, slopes, deltas, probabilities, bits)
        for k in range(v.shape[1]):
            _product(
                theta[e], v[e, k], weights[e], probabilities, sizes, activation,
                gauss_newton, units, slopes, deltas, tangent, second, out[e, k],
            )  # fmt: skip


@njit(cache=True, inline="never", nogil=True)
def _column(theta, layer, out_unit, in_unit, weight, probabilities, sizes, activation, gauss_newton,
            units, slopes, deltas, tangent, second, column):  # fmt: skip
    """One column of the curvature: that of weight (out_unit, in_unit) of `layer`, or, in_unit < 0, of its bias.

    Only the entries of this layer and those above it are computed: the rest follow by symmetry. So the tangent starts
    at the layer, where it is one row of inputs, and the backward pass ends there.
    """
    layers = sizes.shape[0] - 1
    first, start = 0, 0
    for k in range(layer):
        first += sizes[k]
        start += sizes[k] * sizes[k + 1] + sizes[k + 1]
    into = first + sizes[layer]
    tangent[into : into + sizes[layer + 1]] = 0.0
    tangent[into + out_unit] = units[first + in_unit] if in_unit >= 0 else np.ones(units.shape[1])
    at, offset = first, start
    for k in range(layer, layers):
        n_in, n_out = sizes[k], sizes[k + 1]
        if k > layer:
            tangent[at + n_in : at + n_in + n_out] = 0.0
            _affine(theta, offset, n_in, n_out, tangent, at, tangent, at + n_in, True)
        if k < layers - 1:
            _times_slope(tangent, slopes, at + n_in, n_out)
        at += n_in
        offset += n_in * n_out + n_out
    _tangent_softmax(probabilities, weight, tangent, at, second, sizes[layers])
    for k in range(layers - 1, layer - 1, -1):
        n_in, n_out = sizes[k], sizes[k + 1]
        offset -= n_in * n_out + n_out
        at -= n_in
        _outer_sum(second, at + n_in, n_out, units, at, n_in, column, offset, False)
        if k > layer:
            if not gauss_newton:
                _outer_sum(deltas, at + n_in, n_out, tangent, at, n_in, column, offset, True)
            _affine_transposed(theta, offset, n_in, n_out, second, at + n_in, second, at, False)
            _times_slope(second, slopes, at, n_in)
            if not gauss_newton and activation != RELU:
                _tangent_slope(second, deltas, units, slopes, tangent, at, n_in, activation)


@njit(cache=True, nogil=True)
def matrices(theta, weights, x, y, dataset, sizes, activation, gauss_newton, out):
    """out (E, P, P) = the Hessian or Gauss-Newton matrix of sum_i w_i loss_i, no L2 term; symmetric."""
    units, slopes, deltas, tangent, second, probabilities, bits = _buffers(sizes, x.shape[2])
    for e in range(theta.shape[0]):
        d = dataset[e]
        network = theta[e], weights[e], x[d], y[d], sizes, activation
        _deltas(*network, units, slopes, deltas, probabilities, bits)
        p = 0
        for layer in range(sizes.shape[0] - 1):
            n_in, n_out = sizes[layer], sizes[layer + 1]
            for k in range(n_in * n_out + n_out):
                j = k // n_in if k < n_in * n_out else k - n_in * n_out
                i = k % n_in if k < n_in * n_out else -1
                _column(
                    theta[e], layer, j, i, weights[e], probabilities, sizes, activation, gauss_newton,
                    units, slopes, deltas, tangent, second, out[e, p + k],
                )  # fmt: skip
            p += n_in * n_out + n_out
        for r in range(theta.shape[1]):
            for c in range(r):
                out[e, r, c] = out[e, c, r]


@njit(cache=True, nogil=True)
def example_gradients(theta, x, y, dataset, sizes, activation, out):
    """out (E, n, P) = gradient of each loss_i."""
    n = x.shape[2]
    units, slopes, deltas, _, _, odds, bits = _buffers(sizes, n)
    ones = np.ones(n)
    for e in range(theta.shape[0]):
        d = dataset[e]
        _deltas(theta[e], ones, x[d], y[d], sizes, activation, units, slopes, deltas, odds[:0], bits)
        first, p = 0, 0
        for layer in range(sizes.shape[0] - 1):
            n_in, n_out = sizes[layer], sizes[layer + 1]
            for j in range(n_out):
                for i in range(n_in):
                    for s in range(n):
                        out[e, s, p + j * n_in + i] = deltas[first + n_in + j, s] * units[first + i, s]
                for s in range(n):
                    out[e, s, p + n_in * n_out + j] = deltas[first + n_in + j, s]
            first += n_in
            p += n_in * n_out + n_out


@njit(cache=True, nogil=True)
def lissa(theta, v, x, y, draws, sizes, activation, decay, damping, scale, out):
    """Stochastic recursion h <- v + h - (H_i + L2 + damping) h / scale with example i = draws[t]; out = h / scale.

    theta (P,); v, out (K, P); x (d, n); y (n,); draws (T,). The fixed point in the mean is (H + damping I)^-1 v
    (Agarwal, Bullins, Hazan 2016, with the scale of Koh and Liang 2017 dividing the damping too).
    """
    units, slopes, deltas, tangent, second, probabilities, bits = _buffers(sizes, 1)
    one = np.ones(1)
    product, column = np.empty(theta.shape[0]), np.empty((x.shape[0], 1))
    out[:] = v
    for t in range(draws.shape[0]):
        i = draws[t]
        column[:, 0] = x[:, i]
        network = theta, one, column, y[i : i + 1], sizes, activation
        _deltas(*network, units, slopes, deltas, probabilities, bits)
        for k in range(v.shape[0]):
            h = out[k]
            _product(
                theta, h, one, probabilities, sizes, activation, False, units, slopes, deltas, tangent, second, product
            )
            for p in range(theta.shape[0]):
                h[p] += v[k, p] - (product[p] + (decay[p] + damping) * h[p]) / scale
    out /= scale


def compile_all() -> None:
    """Compile every kernel once, about a minute on one core; numba keeps the result for later processes."""
    theta, weights, v = np.zeros((1, 43)), np.ones((1, 2)), np.zeros((1, 1, 43))
    x, y, dataset, sizes = np.zeros((1, 4, 2)), np.zeros((1, 2), np.int64), np.zeros(1, np.int64), np.array([4, 5, 3])
    network = x, y, dataset, sizes, RELU
    logits(theta, *network, np.empty((1, 3, 2)))
    gradients(theta, weights, *network, np.empty((1, 43)))
    descend(theta, theta.copy(), weights, *network, np.zeros(43), 0.1, 0.9, 1)
    products(theta, v, weights, *network, False, np.empty((1, 1, 43)))
    matrices(theta, weights, *network, False, np.empty((1, 43, 43)))
    example_gradients(theta, *network, np.empty((1, 2, 43)))
    lissa(theta[0], v[0], x[0], y[0], np.zeros(1, np.int64), sizes, RELU, np.zeros(43), 0.1, 1.0, np.empty((1, 43)))
