"""Where everything lies in the memory of the convolution kernels: one table of numbers for each network and type.

Maps lie as (channel, y, x, lane), a lane for each image of a block of images, channels filled up to a multiple of ROWS
with zero weights. `Net` is what compiled code sees; `Layout` translates parameter vectors to the kernels' order and
back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fragile_lib.kernels.conv_tiles import LANES, ROWS

# Columns of `Net.plan`, one row a layer.
N_IN, N_OUT, KERNEL, STRIDE, SIDE_IN, SIDE_OUT = range(6)
FROM, INTO = 6, 7  # in a buffer of units: where the layer's input and its output lie (no input for the image)
FORWARD, BIAS, BACK = 8, 9, 10  # in packed weights: those of the convolution, its biases, those of its pull-back
TAPS, PULLS, SPANS = 11, 12, 13  # in the tables of the same names
GRADIENT, BIAS_GRADIENT, AFTER = 14, 15, 16  # in a buffer of gradients: weights, biases, the next layer
FIELDS = 17

TANH, RELU = 0, 1


Stage = Any  # `models.small_cnn.Stage`, of which the numbers are read
Network = Any  # with `stages`, n_params and an activation, as `models.small_cnn.SmallCNN`


class Net(NamedTuple):
    """A network for compiled code.

    taps: offset of each window element (channel, ky, kx) from a window's first; pulls: of each output (ky, channel)
    that an input row feeds; spans: for each input row the first and the number of such terms. units, gradients: sizes
    of the buffers, in elements; zeros: where packed weights are zero; ones: a vector of ones. first is the channel 0,
    and add stands for a bias of what is there: as numbers in the code they would make numba compile each layer anew.
    """

    plan: np.ndarray
    taps: np.ndarray
    pulls: np.ndarray
    spans: np.ndarray
    ones: np.ndarray
    lanes: int
    units: int
    gradients: int
    zeros: int
    activation: int
    first: int = 0
    add: int = -1


@dataclass(frozen=True)
class Layout:
    """A `Net` and how parameter vectors enter and leave it.

    pack (Q,): packed weights are theta[pack], where theta has a zero appended. unpack (P,): the place of each
    parameter in a buffer of gradients, counted in vectors. columns (P, 5): of each parameter, the layer, output
    channel, input channel (-1 for a bias), ky, kx.
    """

    net: Net
    pack: np.ndarray
    unpack: np.ndarray
    columns: np.ndarray

    def packed(self, theta: np.ndarray) -> np.ndarray:
        """Packed weights (..., Q) of parameter vectors (..., P)."""
        zero = np.zeros((*theta.shape[:-1], 1), theta.dtype)
        return np.ascontiguousarray(np.concatenate([theta, zero], -1)[..., self.pack])


def layout(model: Network, dtype: np.dtype) -> Layout:
    """The layout of a network for float64 or float32."""
    lanes = LANES[np.dtype(dtype)]
    plan = np.zeros((len(model.stages), FIELDS), np.int64)
    pack, taps, pulls, spans = [], [], [], []
    unit, place = 0, 0
    for row, stage in zip(plan, model.stages, strict=True):
        row[:6] = stage.n_in, stage.n_out, stage.kernel, stage.stride, stage.side_in, stage.side_out
        if stage.pooled:  # the mean over space has its own place, after the maps
            row[FROM], unit = unit, unit + _padded(stage.n_in) * lanes
        elif unit:
            row[FROM] = plan[len(pack) // 3 - 1, INTO]
        row[INTO], unit = unit, unit + _padded(stage.n_out) * stage.side_out**2 * lanes
        for column, part in zip((FORWARD, BIAS, BACK), _packing(stage, model.n_params), strict=True):
            row[column] = sum(map(len, pack))
            pack.append(part)
        row[TAPS], row[PULLS], row[SPANS] = sum(map(len, taps)), sum(map(len, pulls)), sum(map(len, spans))
        taps.append(_taps(stage) * lanes), pulls.append(_pulls(stage) * lanes), spans.append(_spans(stage))
        row[GRADIENT] = place
        row[BIAS_GRADIENT] = place + _padded(stage.n_out) * stage.n_in * stage.kernel**2 * lanes
        row[AFTER] = place = row[BIAS_GRADIENT] + _padded(stage.n_out) * lanes
    zeros = sum(map(len, pack))
    pack.append(np.full(_padded(max(stage.n_out for stage in model.stages)), model.n_params))
    tables = np.concatenate(taps), np.concatenate(pulls), np.concatenate(spans)
    activation = RELU if model.activation == "relu" else TANH
    net = Net(plan, *tables, np.ones(lanes, dtype), lanes, int(unit), int(place), zeros, activation)
    columns = np.concatenate([_columns(stage, layer) for layer, stage in enumerate(model.stages)])
    return Layout(net, np.concatenate(pack), _unpacking(plan, columns, lanes), columns)


def _padded(channels: int) -> int:
    return -(-channels // ROWS) * ROWS


def _ordered_rows(stage: Stage) -> list[int]:
    """The rows ky of a kernel, those that reach the same input row side by side: by ky modulo the stride."""
    return sorted(range(stage.kernel), key=lambda ky: (ky % stage.stride, ky))


def _packing(stage: Stage, zero: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which parameter stands where in packed weights: (block, tap, ROWS), (block, ROWS), (block, kx, ky, out, ROWS)."""
    shape = (_padded(stage.n_out), _padded(stage.n_in), stage.kernel, stage.kernel)
    weight = np.full(shape, zero)
    weight[: stage.n_out, : stage.n_in] = stage.start + np.arange(stage.n_weights).reshape(
        stage.n_out, stage.n_in, stage.kernel, stage.kernel
    )
    bias = np.full(shape[0], zero)
    bias[: stage.n_out] = stage.start + stage.n_weights + np.arange(stage.n_out)
    forward = weight[:, : stage.n_in].reshape(shape[0] // ROWS, ROWS, -1).transpose(0, 2, 1)
    back = weight[: stage.n_out, :, _ordered_rows(stage)].reshape(stage.n_out, -1, ROWS, stage.kernel, stage.kernel)
    return forward.ravel(), bias, back.transpose(1, 4, 3, 0, 2).ravel()


def _taps(stage: Stage) -> np.ndarray:
    c, y, x = np.meshgrid(np.arange(stage.n_in), *[np.arange(stage.kernel)] * 2, indexing="ij")
    return ((c * stage.side_in + y) * stage.side_in + x).ravel()


def _pulls(stage: Stage) -> np.ndarray:
    """Offset of output (o, row oy) from row iy // stride of output 0, for each (ky, o): oy = iy // s - ky // s."""
    ky, o = np.meshgrid(_ordered_rows(stage), np.arange(stage.n_out), indexing="ij")
    return ((o * stage.side_out - ky // stage.stride) * stage.side_out).ravel()


def _spans(stage: Stage) -> np.ndarray:
    """(side_in, 2) first and number of the terms (ky, o) with which each input row appears in outputs."""
    found, order = np.zeros((stage.side_in, 2), np.int64), _ordered_rows(stage)
    for iy in range(stage.side_in):
        used = [
            at
            for at, ky in enumerate(order)
            if (iy - ky) % stage.stride == 0 and 0 <= (iy - ky) // stage.stride < stage.side_out
        ]
        if used:
            found[iy] = used[0] * stage.n_out, len(used) * stage.n_out
    return found


def _columns(stage: Stage, layer: int) -> np.ndarray:
    weight = np.indices((stage.n_out, stage.n_in, stage.kernel, stage.kernel)).reshape(4, -1).T
    bias = np.array([[o, -1, 0, 0] for o in range(stage.n_out)])
    both = np.concatenate([weight, bias])
    return np.column_stack([np.full(len(both), layer), both])


def _unpacking(plan: np.ndarray, columns: np.ndarray, lanes: int) -> np.ndarray:
    rows = plan[columns[:, 0]]
    _, o, c, ky, kx = columns.T
    kernel = rows[:, KERNEL]
    weight = rows[:, GRADIENT] // lanes + ((o * rows[:, N_IN] + c) * kernel + ky) * kernel + kx
    return np.where(c < 0, rows[:, BIAS_GRADIENT] // lanes + o, weight)
