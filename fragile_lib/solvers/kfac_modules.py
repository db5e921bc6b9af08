"""K-FAC and EK-FAC of deep networks with normalisation layers: VGG, ResNet and their like.

The same blocks as `kfac` for Linear and Conv2d layers, a diagonal for the scales and shifts of normalisation layers,
and passes that hold the patches of one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import torch
from scipy import linalg
from torch import Tensor, nn

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.kfac import Block, KfacSolver, _decays, _output_gradients
from fragile_lib.solvers.kfac_layers import Layer, batches
from fragile_lib.solvers.kfac_module_layers import NormLayer, check_module, find_module_layers, own_copy
from fragile_lib.solvers.operator import DampedCurvature, check_count, check_positive_damping
from fragile_lib.tools.errors import bad_input

PIECE = 2**24  # numbers in one temporary of patches or of examples' gradients: 64 MB in single precision


@dataclass(frozen=True)
class DiagonalBlock:
    """One normalisation layer's curvature without its off-diagonal: spectrum (p,); decay (p,) its L2 factors."""

    layer: NormLayer
    spectrum: Tensor
    decay: Tensor

    def solve(self, v: Tensor, damping: float) -> Tensor:
        """(block + L2 + damping I)^-1 on the layer's parameters: (K, p) for v (K, p)."""
        return v / (self.spectrum + self.decay + damping)

    def dense(self) -> Tensor:
        """The block without L2 (p, p)."""
        return torch.diag(self.spectrum)


class ModuleEkfacSolver(KfacSolver):
    """EK-FAC or K-FAC inverse of the Gauss-Newton matrix of a network with normalisation layers.

    Linear and Conv2d layers have the blocks of `EkfacSolver` or `KfacSolver`, L2 and damping exact. The scale and shift
    of a normalisation layer (BatchNorm1d and 2d with frozen statistics, GroupNorm, LayerNorm) have the diagonal of
    their Gauss-Newton block, for gradients g_nct at its outputs, t over the places that share a parameter,

        scale: mean_n sum_c (sum_t g_nct xhat_nt)^2,     shift: mean_n sum_c (sum_t g_nct)^2,

    c over the columns of a root of the logits' diag(p) - p p^T, or over labels drawn from p. It is inverted by
    division, after L2 and damping have been added.

    The set-up, which counts in `seconds`, costs `samples` backward passes (one a class for None) and as many again
    where `corrected`. Factors are in the floating type of theta; eigenvectors are found in double precision, since
    single precision leaves eigenvalues below 1e-7 of the largest to chance. Memory: one batch's activations, the
    factors, and a patch matrix of at most 2^24 numbers, or of one example. `apply` is the inverse without its residual,
    and positive: a preconditioner for `BlockCGSolver`.

    Args:
        objective: J on the training data, of cross-entropy losses; its first data set is used.
        theta: one network (P,).
        damping: above 0, since the logits' loss has no curvature along their sum.
        module: the same network, whose parameters in order are theta: `ModuleModel(...).module(theta)`. It is copied.
        corrected: EK-FAC, with eigenvalues from a second pass (George et al. 2018); else K-FAC.
        batch: examples in one pass; the answer does not depend on it.
        samples: labels drawn for each example; None takes all classes, exactly.
        seed: of these draws.
        residual: another objective to measure the residual on, with the same L2; default `objective`.
        chunk: vectors in one call of `objective.products`, for the residual.

    Raises:
        InputError: a bad damping or count; a module that is not the network, with layers that are random or change in
            training mode, with parameters outside these layers or used not exactly once, or with convolutions of
            groups or of a padding other than zeros by number; another loss; L2 that differs within the weights or the
            biases of a Kronecker block, or between `residual` and `objective`.
    """

    # The methods of KfacSolver serve blocks of any kind; only the way to the blocks is another.
    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        damping: float,
        module: nn.Module,
        corrected: bool = True,
        batch: int = 64,
        samples: int | None = 1,
        seed: int = 0,
        residual: Objective | None = None,
        chunk: int | None = None,
    ) -> None:
        check_positive_damping(damping, "the curvature is zero along the sum of the logits")
        check_count("batch", batch)
        check_count("samples", samples, optional=True)
        residual = objective if residual is None else residual
        self.operator = DampedCurvature(residual, theta, damping, gauss_newton=True, chunk=chunk)
        for name, one in (("objective", objective), ("residual", residual)):
            if getattr(type(one), "_loss", Objective._loss) is not Objective._loss:
                raise bad_input(name, type(one).__name__, "K-FAC here knows the cross entropy alone")
        if not torch.equal(residual.decay, objective.decay):
            raise bad_input("residual", type(residual).__name__, "its L2 has to be the objective's")
        began = perf_counter()
        x, self.corrected = objective.data.x[0], corrected
        layers = find_module_layers(module)
        module, layers = own_copy(module, layers)
        check_module(objective, theta, module, layers, x)
        decays = [_decays(objective.decay, layer) if isinstance(layer, Layer) else None for layer in layers]
        self.blocks = []
        spectra = self._spectra(module, layers, x, batch, samples, seed)
        for layer, decay, (left, right, spectrum) in zip(layers, decays, spectra, strict=True):
            if isinstance(layer, Layer):
                self.blocks.append(Block(layer, left, right, spectrum, *decay))
            else:
                self.blocks.append(DiagonalBlock(layer, spectrum, objective.decay[layer.place].to(theta)))
        self.seconds = perf_counter() - began

    def _spectra(
        self, module: nn.Module, layers: list, x: Tensor, batch: int, samples: int | None, seed: int
    ) -> list[tuple]:
        """(left, right, spectrum) of each layer; left and right None where the block is diagonal."""
        found: list[tuple] = []
        factors = module_factors(module, layers, x, batch, samples, seed)
        for layer in layers:
            parts = factors.pop(0)  # one at a time, so that no factor outlives its eigenvectors
            if isinstance(layer, Layer):
                (a, right), (g, left) = [eigen(part.double()) for part in parts]
                spectrum = g.clamp(min=0)[:, None] * a.clamp(min=0)
                found.append(tuple(part.to(parts[0]) for part in (left, right, spectrum)))
            else:
                found.append((None, None, parts[0]))
        if self.corrected:
            places = [place for place, layer in enumerate(layers) if isinstance(layer, Layer)]
            known, bases = [layers[place] for place in places], [found[place][:2] for place in places]
            spectra = module_spectra(module, known, x, batch, samples, seed, bases)
            for place, basis, spectrum in zip(places, bases, spectra, strict=True):
                found[place] = (*basis, spectrum)
        return found


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,), rising, and eigenvectors (n, n) of a symmetric matrix, by another driver where one fails.

    A factor of ResNet-50's last block has 4,608 rows, and forty images of one place each give it rank forty. LAPACK's
    divide and conquer can fail on so many equal eigenvalues; such a factor is then decomposed by relatively robust
    representations (`evr`), and the eigenvectors are as good.

    Raises:
        torch.linalg.LinAlgError: a matrix that is not finite.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise torch.linalg.LinAlgError("a Kronecker factor is not finite")
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        values, vectors = linalg.eigh(matrix.cpu().numpy(), driver="evr")
        return torch.from_numpy(values).to(matrix), torch.from_numpy(vectors).to(matrix)


def module_factors(
    module: nn.Module, layers: list, x: Tensor, batch: int, samples: int | None, seed: int
) -> list[list[Tensor]]:
    """[A (in, in), G (out, out)] of each Kronecker layer, [diagonal (p,)] of each other: means over all examples."""
    found = [[0.0, 0.0] if isinstance(layer, Layer) else [0.0] for layer in layers]
    for logits, inputs, outputs, draws in batches(module, layers, x, batch, samples, seed):
        for layer, parts, a, out in zip(layers, found, inputs, outputs, strict=True):
            if isinstance(layer, Layer):
                n_places = out[0].numel() // len(layer.module.weight)
                for rows in _pieces(len(a), n_places * layer.module.weight[0].numel()):
                    patches = layer.patches(a[rows]).flatten(0, 1)
                    parts[0] += patches.T @ patches / (len(x) * n_places)
        for gradients in _output_gradients(logits, outputs, draws):
            for layer, parts, a, g in zip(layers, found, inputs, gradients, strict=True):
                if isinstance(layer, Layer):
                    g = layer.places(g).flatten(0, 1)
                    parts[1] += g.T @ g / len(x)
                else:
                    parts[0] += layer.gradients(a, g).square_().sum(0) / len(x)
    return found


def module_spectra(
    module: nn.Module,
    layers: list[Layer],
    x: Tensor,
    batch: int,
    samples: int | None,
    seed: int,
    bases: list[tuple[Tensor, Tensor]],
) -> list[Tensor]:
    """(out, in) of each layer: the mean squares of the per-example gradients in the bases (U_g, U_a)."""
    found = [torch.zeros(len(g), len(a), dtype=a.dtype, device=a.device) for g, a in bases]
    for logits, inputs, outputs, draws in batches(module, layers, x, batch, samples, seed):
        for gradients in _output_gradients(logits, outputs, draws):
            for layer, total, a, g, basis in zip(layers, found, inputs, gradients, bases, strict=True):
                total += _squares(layer, a, g, *basis) / len(x)
    return found


def _squares(layer: Layer, a: Tensor, g: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(out, in): sum_n (U_g^T (sum_t g_nt a_nt^T) U_a)^2, entry by entry, in the cheapest order there is."""
    g = layer.places(g)
    n_places, n_out, n_in = g.shape[1], len(left), len(right)
    if n_places == 1:  # the square of a product: no example needs a matrix of its own
        return (g[:, 0] @ left).square_().T @ (layer.patches(a)[:, 0] @ right).square_()
    early = n_places * (n_in**2 + n_out**2) < n_in * n_out * (n_in + n_out)
    found = left.new_zeros(n_out, n_in)
    for rows in _pieces(len(g), max(n_places, n_out) * n_in):
        patches, signals = layer.patches(a[rows]), g[rows]
        inside = (signals @ left).mT @ (patches @ right) if early else left.T @ (signals.mT @ patches) @ right
        found += inside.square_().sum(0)
    return found


def _pieces(n: int, numbers: int) -> Iterator[slice]:
    """Slices of n examples so small that temporaries of so many numbers an example keep to PIECE."""
    step = max(1, PIECE // numbers)
    return (slice(start, start + step) for start in range(0, n, step))
