"""The inner loops of the convolution kernels, written as vector code for LLVM.

A convolution of 8 channels is too narrow for matrix-product libraries, and copying its windows into a matrix costs as
much as the arithmetic. Here one vector register holds the same number of several images (its lanes), and a tile of ROWS
rows by 3 columns of registers is summed up without touching memory. A processor with AVX-512 has 32 registers of 64
bytes, which hold a tile of 8 rows; others have 16 of 32 bytes or less, for 4 rows, and would spill a larger one. The
two add up images in different orders: their results differ by rounding.

Each of the following is called from compiled code (numba's nopython mode); arrays are one-dimensional and contiguous,
positions count their elements.

* `tile1`, `tile2`, `tile3` (columns p = 0 .. 0, 1 or 2; j a row; every sum runs over k = 0 .. count - 1):

      out[at + j row + p column] = first + sum_k packed[w + ROWS k + j] * source[start + offsets[k0 + k] + p step]

  where `first` is packed[bias + j], or, for bias < 0, what stands in `out`.
* `outer1`, `outer3` (taps t = 0 .. 0 or 2; sums over y < ny, x < nx):

      out[at + j row + t tap] += sum_yx deltas[d + j dj + y dy + x dx] * source[s + t st + y sy + x sx]
* `tanh_in_place(values, at, count)`
* `add_lane_sums(out, at, source, start, count)`: out[at + i] += sum of the lanes of the i-th vector of `source`
"""

from __future__ import annotations

from collections.abc import Callable
from math import factorial

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WIDE = binding.get_host_cpu_features().get("avx512f", False)
ROWS = 8 if WIDE else 4
REGISTER = 64 if WIDE else 32  # bytes
TOGETHER = 4  # vectors of which tanh is taken side by side; a power of 2
LANES = {np.dtype(kind): REGISTER // np.dtype(kind).itemsize for kind in (np.float64, np.float32)}

_INT = types.intp


class _Writer:
    """Writes vector instructions for the floating type of one array argument of an intrinsic."""

    def __init__(self, context, builder, signature, args, like: int) -> None:
        self.context, self.builder, self.types, self.args = context, builder, signature.args, args
        self.double = signature.args[like].dtype == types.float64
        self.scalar = ir.DoubleType() if self.double else ir.FloatType()
        self.bytes = 8 if self.double else 4
        self.lanes = REGISTER // self.bytes
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.suffix = f"v{self.lanes}f{8 * self.bytes}"

    def pointer(self, argument: int) -> ir.Value:
        """Where the data of an array argument begin."""
        return self.context.make_array(self.types[argument])(self.context, self.builder, self.args[argument]).data

    def at(self, base: ir.Value, start: ir.Value, *strided: tuple[ir.Value, int]) -> ir.Value:
        """A pointer to the vector at base[start + stride * times + ...]."""
        for stride, times in strided:
            start = self.builder.add(start, self.builder.mul(stride, ir.Constant(start.type, times)))
        return self.builder.bitcast(self.builder.gep(base, [start]), self.vector.as_pointer())

    def load(self, pointer: ir.Value) -> ir.Value:
        return self.builder.load(pointer, align=self.bytes)

    def store(self, value: ir.Value, pointer: ir.Value) -> None:
        self.builder.store(value, pointer, align=self.bytes)

    def splat(self, value: ir.Value) -> ir.Value:
        """The same number in every lane."""
        nothing, whole = ir.Constant(self.vector, ir.Undefined), ir.IntType(32)
        one = self.builder.insert_element(nothing, value, ir.Constant(whole, 0))
        first = ir.Constant(ir.VectorType(whole, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(one, nothing, first)

    def constant(self, value: float) -> ir.Value:
        return ir.Constant(self.vector, [value] * self.lanes)

    def call(self, name: str, *operands: ir.Value) -> ir.Value:
        """One of LLVM's own functions on vectors."""
        kind = ir.FunctionType(self.vector, [self.vector] * len(operands))
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.{name}.{self.suffix}")
        return self.builder.call(function, operands)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a * b + c."""
        return self.call("fmuladd", a, b, c)


def _tile(columns: int) -> Callable:
    @intrinsic
    def tile(_, out, at, row, column, source, start, offsets, k0, count, step, packed, w, bias):
        numbers = [_INT] * 3
        signature = types.void(out, *numbers, source, _INT, offsets, *numbers, packed, _INT, _INT)

        def generate(context, builder, signature, args):
            write = _Writer(context, builder, signature, args, 0)
            out_p, source_p, offsets_p, packed_p = (write.pointer(i) for i in (0, 4, 6, 10))
            _, at, row, column, _, start, _, k0, count, step, _, w, bias = args
            cells = [(j, p) for j in range(ROWS) for p in range(columns)]
            targets = {(j, p): write.at(out_p, at, (row, j), (column, p)) for j, p in cells}
            sums = {cell: cgutils.alloca_once(builder, write.vector) for cell in cells}

            def weight(first: ir.Value, j: int) -> ir.Value:
                place = builder.add(first, ir.Constant(first.type, j))
                return write.splat(builder.load(builder.gep(packed_p, [place])))

            with builder.if_else(builder.icmp_signed("<", bias, ir.Constant(bias.type, 0))) as (add, begin):
                with add:
                    for cell in cells:
                        builder.store(write.load(targets[cell]), sums[cell])
                with begin:
                    for j, p in cells:
                        builder.store(weight(bias, j), sums[j, p])
            with cgutils.for_range(builder, count, intp=count.type) as loop:
                offset = builder.load(builder.gep(offsets_p, [builder.add(k0, loop.index)]))
                place = builder.add(start, offset)
                values = [write.load(write.at(source_p, place, (step, p))) for p in range(columns)]
                first = builder.add(w, builder.mul(loop.index, ir.Constant(w.type, ROWS)))
                for j in range(ROWS):
                    factor = weight(first, j)
                    for p in range(columns):
                        builder.store(write.fma(factor, values[p], builder.load(sums[j, p])), sums[j, p])
            for cell in cells:
                write.store(builder.load(sums[cell]), targets[cell])
            return context.get_dummy_value()

        return signature, generate

    return tile


def _outer(taps: int) -> Callable:
    @intrinsic
    def outer(_, out, at, row, tap, deltas, d, dj, dy, dx, source, s, st, sy, sx, ny, nx):
        signature = types.void(out, *[_INT] * 3, deltas, *[_INT] * 4, source, *[_INT] * 6)

        def generate(context, builder, signature, args):
            write = _Writer(context, builder, signature, args, 0)
            out_p, deltas_p, source_p = (write.pointer(i) for i in (0, 4, 9))
            _, at, row, tap, _, d, dj, dy, dx, _, s, st, sy, sx, ny, nx = args
            cells = [(j, t) for j in range(ROWS) for t in range(taps)]
            targets = {(j, t): write.at(out_p, at, (row, j), (tap, t)) for j, t in cells}
            sums = {cell: cgutils.alloca_once(builder, write.vector) for cell in cells}
            for cell in cells:
                builder.store(write.load(targets[cell]), sums[cell])
            with cgutils.for_range(builder, ny, intp=ny.type) as y:
                d_row = builder.add(d, builder.mul(dy, y.index))
                s_row = builder.add(s, builder.mul(sy, y.index))
                with cgutils.for_range(builder, nx, intp=nx.type) as x:
                    d_at = builder.add(d_row, builder.mul(dx, x.index))
                    s_at = builder.add(s_row, builder.mul(sx, x.index))
                    values = [write.load(write.at(source_p, s_at, (st, t))) for t in range(taps)]
                    for j in range(ROWS):
                        delta = write.load(write.at(deltas_p, d_at, (dj, j)))
                        for t in range(taps):
                            builder.store(write.fma(delta, values[t], builder.load(sums[j, t])), sums[j, t])
            for cell in cells:
                write.store(builder.load(sums[cell]), targets[cell])
            return context.get_dummy_value()

        return signature, generate

    return outer


tile1, tile2, tile3 = _tile(1), _tile(2), _tile(3)
outer1, outer3 = _outer(1), _outer(3)


@intrinsic
def tanh_in_place(_, values, at, count):
    """Replace `count` vectors of `values` by their tanh, to two units in the last place; NaN stays NaN."""

    def generate(context, builder, signature, args):
        write = _Writer(context, builder, signature, args, 0)
        values_p, (_, at, count) = write.pointer(0), args

        def whole(number: int) -> ir.Value:
            return ir.Constant(at.type, number)

        def run(start: ir.Value, times: ir.Value, together: int) -> None:
            with cgutils.for_range(builder, times, intp=count.type) as loop:
                first = builder.add(start, builder.mul(loop.index, whole(together * write.lanes)))
                pointers = [write.at(values_p, first, (whole(write.lanes), i)) for i in range(together)]
                found = _tanh(write, [write.load(pointer) for pointer in pointers])
                for value, pointer in zip(found, pointers, strict=True):
                    write.store(value, pointer)

        rest = builder.and_(count, whole(TOGETHER - 1))
        many = builder.sub(count, rest)
        run(at, builder.sdiv(many, whole(TOGETHER)), TOGETHER)
        run(builder.add(at, builder.mul(many, whole(write.lanes))), rest, 1)
        return context.get_dummy_value()

    return types.void(values, _INT, _INT), generate


def _tanh(write: _Writer, z: list[ir.Value]) -> list[ir.Value]:
    """tanh|z| = -t / (2 + t) with t = exp(-2|z|) - 1, then the sign of z; no division is made.

    The chain of operations is long: several vectors go side by side, operation by operation, to fill the pipeline.
    """
    builder = write.builder
    x = [builder.fmul(write.call("fabs", v), write.constant(-2.0)) for v in z]
    least = write.constant(-40.0 if write.double else -20.0)  # tanh is 1 to the last digit beyond
    below = [builder.fcmp_ordered("<", v, least) for v in x]
    t = _expm1(write, [builder.select(b, least, v) for b, v in zip(below, x, strict=True)])
    inverse = _inverse(write, [builder.fadd(v, write.constant(2.0)) for v in t])
    y = [builder.fmul(builder.fneg(v), i) for v, i in zip(t, inverse, strict=True)]
    return [write.call("copysign", v, sign) for v, sign in zip(y, z, strict=True)]


def _expm1(write: _Writer, x: list[ir.Value]) -> list[ir.Value]:
    """exp(x) - 1 for moderate x: 2^k (exp(r) - 1) + 2^k - 1 with r = x - k ln 2 (Cody and Waite 1980)."""
    builder = write.builder
    if write.double:
        mantissa, bias, whole, degree = 52, 1023, ir.IntType(64), 13
        high, low = 0.693145751953125, 1.42860682030941723212e-6
    else:
        mantissa, bias, whole, degree = 23, 127, ir.IntType(32), 7
        high, low = 0.693359375, -2.12194440054690583e-4
    shift = write.constant(1.5 * 2**mantissa)  # adding it rounds to an integer held in the low bits
    shifted = [write.fma(v, write.constant(1.4426950408889634), shift) for v in x]
    k = [builder.fsub(v, shift) for v in shifted]
    r = [write.fma(i, write.constant(-high), v) for i, v in zip(k, x, strict=True)]
    r = [write.fma(i, write.constant(-low), v) for i, v in zip(k, r, strict=True)]
    series = [write.constant(1 / factorial(degree)) for _ in r]
    for power in range(degree - 1, 1, -1):
        series = [write.fma(s, v, write.constant(1 / factorial(power))) for s, v in zip(series, r, strict=True)]
    small = [write.fma(builder.fmul(v, v), s, v) for v, s in zip(r, series, strict=True)]
    bits = ir.VectorType(whole, write.lanes)

    def each(value: int) -> ir.Constant:
        return ir.Constant(bits, [value] * write.lanes)

    whole_k = [builder.add(builder.bitcast(v, bits), each(bias)) for v in shifted]
    two_k = [builder.bitcast(builder.shl(v, each(mantissa)), write.vector) for v in whole_k]
    less = [builder.fsub(two, write.constant(1.0)) for two in two_k]
    return [write.fma(two, v, rest) for two, v, rest in zip(two_k, small, less, strict=True)]


def _inverse(write: _Writer, d: list[ir.Value]) -> list[ir.Value]:
    """1 / d for d in [1, 2]: a cubic, within 2e-3, then Newton's iteration; several times faster than a division."""
    nodes = np.polynomial.chebyshev.chebpts1(4) / 2 + 1.5
    cubic = np.polyfit(nodes, 1 / nodes, 3)
    y = [write.constant(cubic[0]) for _ in d]
    for coefficient in cubic[1:]:
        y = [write.fma(i, v, write.constant(coefficient)) for i, v in zip(y, d, strict=True)]
    for _ in range(3 if write.double else 2):
        error = [write.fma(write.builder.fneg(v), i, write.constant(1.0)) for v, i in zip(d, y, strict=True)]
        y = [write.fma(i, e, i) for i, e in zip(y, error, strict=True)]
    return y


@intrinsic
def add_lane_sums(_, out, at, source, start, count):
    """out[at + i] += sum of the lanes of the i-th vector of `source`, for i < count."""

    def generate(context, builder, signature, args):
        write = _Writer(context, builder, signature, args, 0)
        out_p, source_p, (_, at, _, start, count) = write.pointer(0), write.pointer(2), args
        kind = ir.FunctionType(write.scalar, [write.scalar, write.vector])
        name = f"llvm.vector.reduce.fadd.{write.suffix}"
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        with cgutils.for_range(builder, count, intp=count.type) as loop:
            place = builder.add(start, builder.mul(loop.index, ir.Constant(start.type, write.lanes)))
            target = builder.gep(out_p, [builder.add(at, loop.index)])
            lanes = write.load(write.at(source_p, place))
            total = builder.call(reduce, [ir.Constant(write.scalar, -0.0), lanes], fastmath=("reassoc",))
            builder.store(builder.fadd(builder.load(target), total), target)
        return context.get_dummy_value()

    return types.void(out, _INT, source, _INT, _INT), generate
