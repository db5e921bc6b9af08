"""What goes wrong in silence in the libraries as they are pinned: each trap is run, and measured by one number.

A number on the other side of its bound means that the library was mended: then the trap leaves this list and the page.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from adapters import captum, dattri, kronfluence, ours, ours_trak, traker
from problems import SMALL, Problem
from torch import Tensor, nn

SMALL_CASE = cache(SMALL["logistic"])


@dataclass(frozen=True)
class Trap:
    """One way to a wrong score.

    what: is done; effect: on a score, with {value} for the number; measure: gives it; above, below: where it stands as
    long as the trap is there.
    """

    library: str
    what: str
    effect: str
    measure: Callable[[], float]
    above: float = float("-inf")
    below: float = float("inf")


def off(found: Tensor, right: Tensor) -> float:
    """||found - right|| / ||right||."""
    return float((found.double() - right).norm() / right.norm())


def alike(found: Tensor, right: Tensor) -> float:
    """Pearson's correlation of all scores."""
    return float(torch.corrcoef(torch.stack([found.double().flatten(), right.flatten()]))[0, 1])


def right(problem: Problem) -> Tensor:
    """The exact scores."""
    return problem.scores(problem.hessian())


def silently(run: Callable[[], Tensor]) -> Tensor:
    """What a call gives, which must not have warned.

    Raises:
        AssertionError: it did: then it is no trap.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        found = run()
    told = [str(w.message) for w in told if "require gradients" not in str(w.message)]
    assert not told, f"it warns: {told}"
    return found


def by_batch() -> float:
    """One batch of all examples against batches of 20."""
    return off(dattri("exact", SMALL_CASE(), batch=20), right(SMALL_CASE()))


def ignored_tolerance() -> float:
    """CG asked for a residual of 1e3 and of 1e-12: how far the answers are apart."""
    loose, tight = (dattri("cg", SMALL_CASE(), tol=tol) for tol in (1e3, 1e-12))
    return off(loose, tight.double())


def iterations() -> float:
    """The share of scores that are no numbers after 1,000 iterations of CG on 42 parameters."""
    return float(dattri("cg", SMALL_CASE(), max_iter=1000).isnan().double().mean())


def default_arnoldi() -> float:
    """The share of scores that are no numbers by Arnoldi with its own settings, 100 vectors for 42 parameters."""
    return float(dattri("arnoldi", SMALL_CASE().single()).isnan().double().mean())


def short_arnoldi() -> float:
    """The same with 20 vectors; captum's with as many is well above 0.9."""
    return alike(dattri("arnoldi", SMALL_CASE().single(), proj_dim=20, max_iter=20), right(SMALL_CASE()))


def unasked_projection() -> float:
    """TracIn without a projector."""
    return off(dattri("tracin", SMALL_CASE(), projected=True), SMALL_CASE().scores(None))


def other_fisher() -> float:
    """EK-FAC against curvlinops' and ours."""
    return off(dattri("ekfac", SMALL_CASE()), ours("ekfac", SMALL_CASE()))


def lissa_damping() -> float:
    """LiSSA at its end against exact scores with the damping times the scale: 0 where that is what it solves."""
    problem, scale = SMALL_CASE(), 10.0
    options = {"batch_size": problem.n, "recursion_depth": 800, "scaling": scale}
    found = dattri("lissa", problem.single(), **options)
    return off(found, right(replace(problem, damping=scale * problem.shift - problem.decay)))


def fifty_eigenvalues() -> float:
    """NaiveInfluenceFunction with its own projection_dim on 79 parameters."""
    problem = SMALL["mlp"]()
    return off(silently(lambda: captum("exact", problem, projection_dim=50)), right(problem))


def dropped_negative() -> float:
    """An indefinite Hessian, with everything kept that captum keeps."""
    torch.manual_seed(0)
    problem = replace(SMALL["mlp"](), decay=0.0)
    shaken = nn.Sequential(nn.Linear(13, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    problem = replace(problem, module=shaken)
    return off(silently(lambda: captum("exact", problem)), right(problem))


def shuffled() -> float:
    """A loader that shuffles, whose scores are read as in the order of the data."""
    torch.manual_seed(0)
    return alike(silently(lambda: captum("tracin", SMALL_CASE(), shuffle=True)), SMALL_CASE().scores(None))


def other_draws() -> float:
    """Two calls, with other labels drawn."""
    first, second = (kronfluence(SMALL_CASE(), seed=seed).double() for seed in (0, 1))
    return off(first, second)


def lost_scale() -> float:
    """The slope of its scores on ours, at a correlation near 1."""
    found, mine = traker(SMALL_CASE()).flatten().double(), ours_trak(SMALL_CASE()).flatten().double()
    return float((found @ mine) / (mine @ mine))


TRAPS: dict[str, Trap] = {
    "scores depend on the batch size": Trap(
        "dattri", "the inverses of the batches' Hessians are summed, not the Hessians",
        "batches of 20 in the place of one of 60: scores {value:.1f} times themselves away", by_batch, above=0.5),
    "conjugate gradients never look at their tolerance": Trap(
        "dattri", "the tolerance is taken and not used",
        "tolerances of 1000 and of 1e-12 give scores that differ by {value:g}", ignored_tolerance, below=1e-15),
    "conjugate gradients run on into NaN": Trap(
        "dattri", "no iteration ends early, and a residual of zero is divided by",
        "after 1,000 iterations {value:.0%} of the scores are no numbers", iterations, above=0.5),
    "Arnoldi is NaN by its own settings": Trap(
        "dattri", "as many vectors are sought as were asked for, 100, though there are fewer directions",
        "42 parameters: {value:.0%} of the scores are no numbers", default_arnoldi, above=0.5),
    "Arnoldi with few vectors": Trap(
        "dattri", "of 20 vectors all are kept, in float32, and nothing tells what they leave out",
        "correlation with the exact scores {value:.2f}", short_arnoldi, below=0.8),
    "TracIn projects unasked": Trap(
        "dattri", "without a projector gradients are still projected at random to 512 numbers",
        "scores off by {value:.0%}", unasked_projection, above=0.05),
    "EK-FAC of another matrix": Trap(
        "dattri", "the data's labels stand in the place of the model's own, and biases among the weights",
        "scores {value:.1f} times themselves away from what curvlinops and this library find",
        other_fisher, above=0.3),
    "LiSSA's damping is multiplied by its scale": Trap(
        "dattri", "the recursion damps before it divides by the scale",
        "its limit is within {value:.0e} of the exact scores at ten times the damping asked for", lissa_damping,
        below=1e-2),
    "all but 50 eigenvalues are dropped": Trap(
        "captum", "NaiveInfluenceFunction keeps the largest 50 unless told otherwise, and says nothing",
        "79 parameters: scores off by {value:.0%}", fifty_eigenvalues, above=0.05),
    "negative eigenvalues are dropped": Trap(
        "captum", "eigenvalues at or below a tolerance are left out, and nothing is said",
        "at a network that is no minimum: scores {value:.1f} times themselves away", dropped_negative, above=0.05),
    "a shuffled loader": Trap(
        "captum", "scores come in the order in which the loader drew",
        "read as in the order of the data: correlation {value:.2f}, which looks like fragility", shuffled, below=0.5),
    "labels are drawn": Trap(
        "kronfluence", "one label is drawn for each example where summing over all is as cheap",
        "another seed: scores of 60 examples off by {value:.0%}", other_draws, above=0.01),
    "the scale is lost": Trap(
        "traker", "the inverse is divided by its mean entry",
        "scores are {value:.0f} times what the method defines; their order stays", lost_scale, above=3.0),
}  # fmt: skip
