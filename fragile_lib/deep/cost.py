"""What runs of the study over architectures cost in time: a model fitted to measured runs.

A work is a mapping as `Network.work` makes it, with three entries more:

    architecture, n_train, test_points m, flops_per_image f (of a forward pass), n_params,
    train, retrain          {"images": that went through a training step, "seconds": of them}
    lissa, cg_ggn, ekfac, identity     {"products": of the curvature of all images with one vector, "seconds": of them}

A work to be predicted is the same without seconds, and with the number of `layers`; `planned` makes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares, nnls

from fragile_lib.tools.errors import bad_input

PARTS = ("train", "retrain", "lissa", "cg_ggn", "ekfac", "identity")
LEAST_NETWORKS = 3  # two coefficients for each kind of pass, and one network to contradict them
STEP_PASSES = 3  # forward passes in a training step: one forward, and backward twice that
SLOPES = 0.5  # Gauss-Newton products in a pass of forward mode, their first half; LeNet and ResNet-18 took 0.4

Work = Mapping[str, object]


def image_passes(work: Work, part: str) -> dict[str, float]:
    """How many images pass through the network in this part, by kind of pass; a product passes every image.

    * `step`: of training;
    * `gauss_newton`: a Gauss-Newton product in chunks. The forward-mode pass over all images that ends every estimate
      counts as `SLOPES` of one for each test point: runs that all have as many of both cannot tell their ratio;
    * `hessian`: a Hessian product in chunks, on which two solvers measure their residual;
    * `small_batch`: LiSSA's products, of few images at a time;
    * `set_up`: of EK-FAC.

    Raises:
        InputError: an unknown part.
    """
    if part in ("train", "retrain"):
        return {"step": work[part]["images"]}
    n, m = work["n_train"], work["test_points"]
    slopes = SLOPES * n * m
    if part == "lissa":
        return {"small_batch": n * work[part]["products"], "hessian": n * m, "gauss_newton": slopes}
    if part == "cg_ggn":
        return {"gauss_newton": n * work[part]["products"] + slopes}
    if part == "ekfac":
        return {"set_up": n, "gauss_newton": n * m + slopes}
    if part == "identity":
        return {"hessian": n * m, "gauss_newton": slopes}
    raise bad_input("part", part, f"choose one of {', '.join(PARTS)}")


@dataclass(frozen=True)
class CostModel:
    """Seconds of an image's pass by kind: c + d f. c in seconds, d in seconds per operation, neither negative.

    flops: the largest f among the runs of the fit.
    """

    coefficients: dict[str, tuple[float, float]]
    flops: float

    def predict(self, work: Work) -> dict[str, float]:
        """Seconds of each part of the work, on the machine that the model was fitted to.

        Raises:
            InputError: a part with a kind of pass that no run of the fit had.
        """
        f = work["flops_per_image"]
        return {
            part: sum(count * self.seconds(kind, f) for kind, count in image_passes(work, part).items())
            for part in parts_of(work)
        }

    def seconds(self, kind: str, flops: float) -> float:
        """Of one image's pass of this kind, in a network of so many operations a forward pass."""
        if kind not in self.coefficients:
            raise bad_input("kind", kind, f"the runs had only {', '.join(self.coefficients)}; add runs that have it")
        constant, slope = self.coefficients[kind]
        return constant + slope * flops

    def forward_passes(self, kind: str) -> float:
        """How many forward passes' operations a pass of this kind stands for, a training step being three.

        The ratio of seconds at the largest network of the fit: how a pass runs on the measured machine, overhead
        included, is counted as operations.
        """
        return STEP_PASSES * self.seconds(kind, self.flops) / self.seconds("step", self.flops)

    @property
    def computing(self) -> float:
        """The share of a training step's seconds that goes with the operations, in the largest network of the fit."""
        return self.coefficients["step"][1] * self.flops / self.seconds("step", self.flops)

    def accelerator_seconds(
        self, work: Work, batches: Mapping[str, int], rate: float, launch: float
    ) -> dict[str, float]:
        """Seconds of each part on another machine, of which nothing is measured: sum over kinds of

            images x forward_passes x max(f / rate, layers x launch / batch).

        Args:
            work: what is to be computed.
            batches: images in one pass, by kind.
            rate: operations a second that the machine sustains.
            launch: seconds before a layer's computation begins, which no batch can go below.

        Raises:
            InputError: a rate or batch that is not positive, a negative launch, or a kind that the fit does not know.
        """
        for name, value in (("rate", rate), *((f"batch of {kind}", size) for kind, size in batches.items())):
            if not (np.isfinite(value) and value > 0):
                raise bad_input(name, value, "give a number above 0")
        if not (np.isfinite(launch) and launch >= 0):
            raise bad_input("launch", launch, "give seconds, 0 or more")
        layers, f, found = work["layers"], work["flops_per_image"], {}
        for part in parts_of(work):
            found[part] = sum(
                count * self.forward_passes(kind) * max(f / rate, layers * launch / batches[kind])
                for kind, count in image_passes(work, part).items()
            )
        return found


def parts_of(work: Work) -> list[str]:
    """The parts that a work has."""
    return [part for part in PARTS if part in work]


def network_of(work: Work) -> tuple:
    """What runs of one network have in common: architecture, operations, parameters."""
    return work["architecture"], work["flops_per_image"], work["n_params"]


def fit(works: Iterable[Work]) -> CostModel:
    """The model with the least sum of squared logarithms of predicted / measured seconds, over all parts of all works.

    Raises:
        InputError: fewer than three distinct networks, or seconds that are not positive.
    """
    works = list(works)
    networks = {network_of(w) for w in works}
    if len(networks) < LEAST_NETWORKS:
        remedy = f"give runs of {LEAST_NETWORKS} networks or more, of different architecture or size"
        raise bad_input("works", f"{len(networks)} distinct networks", remedy)
    pairs = [(work, part) for work in works for part in parts_of(work)]
    seconds = np.array([work[part]["seconds"] for work, part in pairs], dtype=float)
    if not (np.isfinite(seconds) & (seconds > 0)).all():
        raise bad_input("seconds", float(seconds.min()), "leave out parts that took no time")
    passes = [image_passes(*pair) for pair in pairs]
    for (_, part), row in zip(pairs, passes, strict=True):
        if not sum(row.values()) > 0:
            raise bad_input(part, row, "leave out parts in which no image was used")
    kinds = list(dict.fromkeys(kind for row in passes for kind in row))
    counts = np.array([[row.get(kind, 0.0) for kind in kinds] for row in passes], dtype=float)
    flops = np.array([work["flops_per_image"] for work, _ in pairs], dtype=float)
    found = _least_logarithms(np.hstack([counts, counts * flops[:, None]]), seconds)
    coefficients = {kind: (float(found[i]), float(found[i + len(kinds)])) for i, kind in enumerate(kinds)}
    return CostModel(coefficients, float(flops.max()))


def _least_logarithms(terms: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """argmin over x >= 0 of ||log(terms x / seconds)||: (q,) for terms (r, q), seconds (r,).

    From the minimum of ||terms x / seconds - 1||, which has no local ones, but weighs too low a prediction less.
    """
    terms = terms / seconds[:, None]
    scale = np.linalg.norm(terms, axis=0)
    terms = terms / scale
    start = np.maximum(nnls(terms, np.ones(len(terms)))[0], 1e-9)
    found = least_squares(
        lambda x: np.log(terms @ x),
        start,
        jac=lambda x: terms / (terms @ x)[:, None],
        bounds=(0, np.inf),
        **dict.fromkeys(("ftol", "xtol", "gtol"), 1e-12),
    )
    return found.x / scale


@dataclass(frozen=True)
class HeldOut:
    """|log(predicted / measured seconds)| over runs of architectures that the fit had not seen; log 2 is a factor 2."""

    median: float
    worst: float
    n: int


def held_out_errors(works: Iterable[Work]) -> dict[str, HeldOut]:
    """Errors by part, each architecture's runs predicted by a fit to those of all others.

    Raises:
        InputError: fewer than three distinct networks are left without one of the architectures.
    """
    works, errors = list(works), {}
    for architecture in dict.fromkeys(work["architecture"] for work in works):
        model = fit(work for work in works if work["architecture"] != architecture)
        for work in works:
            if work["architecture"] == architecture:
                for part, seconds in model.predict(work).items():
                    errors.setdefault(part, []).append(abs(np.log(seconds / work[part]["seconds"])))
    return {p: HeldOut(float(np.median(errors[p])), max(errors[p]), len(errors[p])) for p in PARTS if p in errors}


def repeat_factor(works: Iterable[Work]) -> float:
    """The largest ratio of seconds an image's pass in one part between two runs of one network; 1 without repetitions.

    Other work on the machine, for the most part. No model that knows the network alone can be near all of its runs.
    """
    found: dict[tuple, list[float]] = {}
    for work in works:
        for part in parts_of(work):
            each = work[part]["seconds"] / sum(image_passes(work, part).values())
            found.setdefault((*network_of(work), part), []).append(each)
    return max((max(each) / min(each) for each in found.values()), default=1.0)
