"""Kronecker-factored curvature: K-FAC and EK-FAC, inverted exactly with weight decay and damping.

curvlinops 3.0.1 computes the same matrices (to 1e-15 on Koh and Liang's network, and a test compares them), but took
1.7 times as long for K-FAC and 2.1 times for EK-FAC there (1,000 images, exact factors) and brings five more packages.
It knows one damping for weights and bias where it treats them together; where it treats them apart, the relative error
to the Gauss-Newton blocks rose from 0.32 to 0.62 on a small network.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from scipy import linalg
from torch import Tensor, nn

from fragile_lib.objectives.base import Objective
from fragile_lib.solvers.base import AppliedInverse, DampedCurvature
from fragile_lib.solvers.kfac_layers import Layer, NormLayer, Passes, check_module, find_layers
from fragile_lib.tools.checks import check_count, check_number
from fragile_lib.tools.errors import bad_input

PIECE = 2**24  # numbers in one temporary of patches or of examples' gradients: 64 MB in single precision


@dataclass(frozen=True)
class Block:
    """One layer's curvature in its Kronecker basis: V -> U_g (spectrum * (U_g^T V U_a)) U_a^T for V (out, in).

    left (out, out), right (in, in) with the bias as the last input where there is one, spectrum (out, in).
    decay and bias_decay: the L2 factors of the layer's weights and of its bias.
    """

    layer: Layer
    left: Tensor
    right: Tensor
    spectrum: Tensor
    decay: float
    bias_decay: float

    def solve(self, v: Tensor, damping: float) -> Tensor:
        """(block + L2 + damping I)^-1 on the layer's parameters: (K, p) for v (K, p)."""
        inside = self.left.T @ self.layer.join(v) @ self.right
        spectrum = self.spectrum + damping + self.decay
        found = inside / spectrum
        if self.layer.bias and self.bias_decay != self.decay:
            # The bias does not decay as the weights do: a change of rank one for each output direction,
            # (D + c b b^T)^-1 = D^-1 - c D^-1 b b^T D^-1 / (1 + c b^T D^-1 b), b the bias input in the basis.
            change, bias = self.bias_decay - self.decay, self.right[-1]
            weight = bias / spectrum
            factor = change * (found @ bias) / (1 + change * weight @ bias)
            found = found - factor[..., None] * weight
        return self.layer.split(self.left @ found @ self.right.T)


@dataclass(frozen=True)
class DiagonalBlock:
    """One normalisation layer's curvature without its off-diagonal: spectrum (p,); decay (p,) its L2 factors."""

    layer: NormLayer
    spectrum: Tensor
    decay: Tensor

    def solve(self, v: Tensor, damping: float) -> Tensor:
        """(block + L2 + damping I)^-1 on the layer's parameters: (K, p) for v (K, p)."""
        return v / (self.spectrum + self.decay + damping)


class KfacSolver(AppliedInverse):
    """Kronecker-factored inverse of the Gauss-Newton matrix (Martens and Grosse 2015; Grosse and Martens 2016).

    The matrix is taken block by block, one for each linear or convolutional layer with its bias as one more input that
    is always 1. For inputs a_nt (a convolution's patches, t over places; one t for a linear layer) and gradients g_nct
    at its outputs, c over the columns of a root of the loss's curvature (cross entropy: diag(p) - p p^T),

        block ~ G x A,  A = mean_nt a a^T,  G = (1/n) sum_nct g g^T     (the `expand` setting, Eschenhagen et al. 2023).

    L2 and damping are added to the product, not to its factors, and the sum is inverted exactly: in the eigenbasis of A
    and G, where it is diagonal but for the bias, which does not decay: a change of rank one for each direction of G.
    `damping` so means what it does for every other solver.

    The scale and shift of a normalisation layer (BatchNorm1d and 2d with frozen statistics, GroupNorm, LayerNorm) have
    the diagonal of their Gauss-Newton block, for gradients g_nct at its outputs, t over the places that share a
    parameter,

        scale: mean_n sum_c (sum_t g_nct xhat_nt)^2,     shift: mean_n sum_c (sum_t g_nct)^2.

    Products: none; the set-up, which counts in `seconds`, costs about one backward pass a class, or a drawn label.
    Factors are in the floating type of theta; eigenvectors are found in double precision, since single precision leaves
    eigenvalues below 1e-7 of the largest to chance. Memory: one batch's activations, the factors, and a patch matrix of
    at most `PIECE` numbers, or of one example.

    `apply` is the inverse without its residual, and is positive. Tried as a preconditioner of conjugate gradients, it
    did harm where the factors fit badly: on Koh and Liang's network, where one filter works at many places, 50 vectors
    took 1,050 products with EK-FAC and 500 without.

    Args:
        objective: J on the training data.
        theta: one network (P,).
        damping: above 0, since cross entropy has no curvature along the sum of the logits.
        module: the same network as nn.Module, whose parameters in order are theta. It is copied. Default:
            `objective.model.module(theta)`.
        dataset: which of the objective's data sets the network sees.
        batch: examples in one pass; the answer does not depend on it.
        samples: labels drawn from the network's own probabilities for each example, in the place of all classes; for
            networks of very many classes. Unbiased, since diag(p) - p p^T is the covariance of a drawn label.
        seed: of these draws.

    Raises:
        InputError: a bad damping or count; a module that is not the network, with layers that are random or change in
            training mode, with parameters outside these layers or used more than once, or with convolutions of groups
            or of a padding other than zeros by number; a loss whose curvature has no root, or samples of one without
            labels to draw; L2 that differs within the weights or the biases of a Kronecker block.
    """

    corrected = False

    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        damping: float,
        module: nn.Module | None = None,
        dataset: int = 0,
        batch: int = 256,
        samples: int | None = None,
        seed: int = 0,
    ) -> None:
        check_number("damping", damping, above=0, why="the curvature is zero along the sum of the logits")
        check_count("batch", batch)
        check_count("samples", samples, optional=True)
        self.operator = DampedCurvature(objective, theta, damping, True, dataset)
        began = perf_counter()
        if module is None:
            if not hasattr(objective.model, "module"):
                raise bad_input("module", None, "this model has no `module(theta)`; give the network as nn.Module")
            module = objective.model.module(theta)
        find_layers(module)  # what it does not know may not let itself be copied
        # no parameter of the copy is frozen: gradients have to reach every output
        module, x = deepcopy(module).requires_grad_(True), objective.data.x[dataset]
        layers = find_layers(module)
        used = check_module(objective, theta, module, layers, x)
        passes = Passes(module, x, objective.data.y[dataset], objective.loss, batch, samples, seed)
        for layer in layers:
            layer.decays(objective.decay)  # refused before the passes
        found = iter(self._blocks([layer for layer, is_used in zip(layers, used, strict=True) if is_used], passes))
        self.blocks = [
            next(found) if is_used else DiagonalBlock(layer, torch.zeros_like(own), own)  # no curvature but its decay
            for layer, is_used in zip(layers, used, strict=True)
            for own in [objective.decay[layer.place].to(theta)]
        ]
        self.seconds = perf_counter() - began

    def _blocks(self, layers: list, passes: Passes) -> list:
        """The blocks of the layers that are used."""
        blocks: list[Block | DiagonalBlock] = []
        factors, decay = kronecker_factors(layers, passes), self.operator.objective.decay
        for layer in layers:
            parts, own = factors.pop(0), layer.decays(decay)  # one at a time: no factor outlives its eigenvectors
            if isinstance(layer, Layer):
                (a, right), (g, left) = [eigen(part.double()) for part in parts]
                spectrum = g.clamp(min=0)[:, None] * a.clamp(min=0)
                blocks.append(Block(layer, *(part.to(parts[0]) for part in (left, right, spectrum)), *own))
            else:
                blocks.append(DiagonalBlock(layer, parts[0], own[0].to(parts[0])))
        if not self.corrected:
            return blocks
        known = [block for block in blocks if isinstance(block, Block)]
        bases = [(block.left, block.right) for block in known]
        spectra = iter(corrected_spectra([block.layer for block in known], passes, bases))
        return [replace(block, spectrum=next(spectra)) if isinstance(block, Block) else block for block in blocks]

    def apply(self, v: Tensor) -> Tensor:
        """(K-FAC + L2 + damping I)^-1 on each row of v (K, P)."""
        parts = [block.solve(v[:, block.layer.place], self.operator.damping) for block in self.blocks]
        return torch.cat(parts, dim=1)


class EkfacSolver(KfacSolver):
    """K-FAC with its eigenvalues corrected (George et al. 2018), as Grosse et al. (2023) use it for influence.

    In the Kronecker basis of `KfacSolver` the eigenvalues are the mean squares of the examples' own gradients,
    s_jk = (1/n) sum_nc (u_g,j^T (sum_t g_nct a_nt^T) u_a,k)^2: of all matrices with these eigenvectors, the one nearest
    to the Gauss-Newton block in Frobenius norm. A second pass over the data.
    """

    corrected = True


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,), rising, and eigenvectors (n, n) of a symmetric matrix, by another driver where one fails.

    A factor of ResNet-50's last block has 4,608 rows, and forty images of one place each give it rank forty. LAPACK's
    divide and conquer can fail on so many equal eigenvalues; such a factor is then decomposed by relatively robust
    representations (`evr`), and the eigenvectors are as good. A matrix that is not finite has NaN for both.
    """
    if not bool(torch.isfinite(matrix).all()):
        return torch.full_like(matrix[0], torch.nan), torch.full_like(matrix, torch.nan)
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        values, vectors = linalg.eigh(matrix.cpu().numpy(), driver="evr")
        return torch.from_numpy(values).to(matrix), torch.from_numpy(vectors).to(matrix)


def kronecker_factors(layers: list, passes: Passes) -> list[list[Tensor]]:
    """[A (in, in), G (out, out)] of each Kronecker layer, [diagonal (p,)] of each other: means over all examples."""
    found, n = [[0.0, 0.0] if isinstance(layer, Layer) else [0.0] for layer in layers], len(passes.x)
    for inputs, outputs, gradients_of_columns in passes.of(layers):
        for layer, parts, a, out in zip(layers, found, inputs, outputs, strict=True):
            if isinstance(layer, Layer):
                n_places = out[0].numel() // len(layer.module.weight)
                for rows in _pieces(len(a), n_places * layer.module.weight[0].numel()):
                    patches = layer.patches(a[rows]).flatten(0, 1)
                    parts[0] += patches.T @ patches / (n * n_places)
        for gradients in gradients_of_columns():
            for layer, parts, a, g in zip(layers, found, inputs, gradients, strict=True):
                if isinstance(layer, Layer):
                    g = layer.places(g).flatten(0, 1)
                    parts[1] += g.T @ g / n
                else:
                    parts[0] += layer.gradients(a, g).square_().sum(0) / n
    return found


def corrected_spectra(layers: list[Layer], passes: Passes, bases: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """(out, in) of each layer: the mean squares of the per-example gradients in the bases (U_g, U_a)."""
    found = [torch.zeros(len(g), len(a), dtype=a.dtype, device=a.device) for g, a in bases]
    for inputs, _, gradients_of_columns in passes.of(layers):
        for gradients in gradients_of_columns():
            for layer, total, a, g, basis in zip(layers, found, inputs, gradients, bases, strict=True):
                total += _squares(layer, a, g, *basis) / len(passes.x)
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
