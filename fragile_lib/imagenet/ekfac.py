"""EK-FAC for networks whose Kronecker factors are far larger than the images they are made of."""

from __future__ import annotations

import warnings

import torch
from scipy import linalg
from torch import Tensor, nn

from fragile_lib.solvers.kfac_layers import Layer
from fragile_lib.solvers.kfac_modules import ModuleEkfacSolver, module_factors, module_spectra


class DeficientEkfacSolver(ModuleEkfacSolver):
    """`ModuleEkfacSolver`, for factors of low rank.

    A factor of ResNet-50's last block has 4,608 rows, and forty images of one place each give it rank forty. LAPACK's
    divide and conquer can fail on so many equal eigenvalues; such a factor is then decomposed by relatively robust
    representations (`evr`), and the eigenvectors are as good.
    """

    def _spectra(
        self, module: nn.Module, layers: list, x: Tensor, batch: int, samples: int | None, seed: int
    ) -> list[tuple]:
        found: list[tuple] = []
        factors = module_factors(module, layers, x, batch, samples, seed)
        for layer in layers:
            parts = factors.pop(0)  # one at a time, so that no factor outlives its eigenvectors
            if not isinstance(layer, Layer):
                found.append((None, None, parts[0]))
                continue
            (a, right), (g, left) = [eigen(part.double()) for part in parts]
            spectrum = g.clamp(min=0)[:, None] * a.clamp(min=0)
            found.append(tuple(part.to(parts[0]) for part in (left, right, spectrum)))
        if self.corrected:
            places = [place for place, layer in enumerate(layers) if isinstance(layer, Layer)]
            known, bases = [layers[place] for place in places], [found[place][:2] for place in places]
            spectra = module_spectra(module, known, x, batch, samples, seed, bases)
            for place, basis, spectrum in zip(places, bases, spectra, strict=True):
                found[place] = (*basis, spectrum)
        return found


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,), rising, and eigenvectors (n, n) of a symmetric matrix, by another driver where one fails.

    Raises:
        torch.linalg.LinAlgError: a matrix that is not finite.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise torch.linalg.LinAlgError("a Kronecker factor is not finite")
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        values, vectors = linalg.eigh(matrix.cpu().numpy(), driver="evr")
        warnings.warn(f"eigenvectors of a factor of {len(matrix)} rows by LAPACK's evr", stacklevel=2)
        return torch.from_numpy(values).to(matrix), torch.from_numpy(vectors).to(matrix)
