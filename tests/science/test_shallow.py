"""The one-product curvature of one-hidden-layer networks against torch.func's products."""

import pytest
import torch

from fragile_lib.data.sets import iris_splits
from fragile_lib.kernels.shallow import shallow_matrices, softmax_factor
from fragile_lib.models.mlp import MLP
from fragile_lib.objectives.base import FusedObjective, Objective


@pytest.mark.parametrize("gauss_newton", [False, True])
@pytest.mark.parametrize(("activation", "sharpness"), [("tanh", 1.0), ("relu", 1.0), ("softplus", 30.0)])
def test_equals_generic_matrices_for_any_weights(activation: str, sharpness: float, gauss_newton: bool) -> None:
    data, _ = iris_splits([0, 1])
    model = MLP(1, 7, activation, sharpness=sharpness)
    theta = torch.stack([model.init(s) for s in (0, 1)]) * 1.3
    weights = torch.randn(2, 120, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 120
    expected = Objective(model, data, 0.01).matrices(theta, weights, gauss_newton=gauss_newton)
    found = FusedObjective(model, data, 0.01).matrices(theta, weights, gauss_newton=gauss_newton)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    bare = shallow_matrices(model, theta, data.x, data.y, weights, gauss_newton)
    torch.testing.assert_close(bare, found - 0.01 * torch.diag(model.is_weight), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [0.1, 3.0, 300.0])
def test_factor_reproduces_the_softmax_hessian_even_when_saturated(scale: float) -> None:
    logits = scale * torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = logits.softmax(1)
    factor = softmax_factor(p)
    assert torch.isfinite(factor).all()
    torch.testing.assert_close(factor @ factor.mT, torch.diag_embed(p) - p[:, :, None] * p[:, None], rtol=0, atol=1e-15)
