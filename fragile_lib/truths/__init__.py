"""Ground truths by name: TRUTHS[name](networks, points, chosen, repeats, **options) -> one `Truth` for each network.

Networks of one stack are retrained as one computation. A name means one algorithm, whatever the data set;
`params/methods.yaml` documents each with its formula and options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from fragile_lib.choices import Chosen, Points, Truth
from fragile_lib.network import Network
from fragile_lib.tools.checks import check_count, check_name
from fragile_lib.truths.minima import minimum_by_newton, near
from fragile_lib.truths.retrained import scratch_batches, scratch_fit, scratch_starts, warm_minibatch
from fragile_lib.truths.stacked import scratch_descent, warm_descent
from fragile_lib.truths.unrolled import unrolled_descent, unrolled_minibatch

MINUS_CONTROL = "_minus_control"


def minimum(
    networks: list[Network], points: list[Points], chosen: list[Chosen], repeats: int = 1, **options: object
) -> list[Truth]:
    """The certified minimum of J without the removal: a stack's with new Hessians, a larger network's with its one."""
    if networks[0].single is None:
        return minimum_by_newton(networks, points, chosen, repeats, **options)
    return near("minimum", networks, points, chosen, repeats, **options)


TRUTHS: dict[str, Callable[..., list[Truth]]] = {
    "warm_descent": warm_descent,
    "warm_minibatch": warm_minibatch,
    "unrolled_descent": unrolled_descent,
    "unrolled_minibatch": unrolled_minibatch,
    "minimum": minimum,
    "tilted_minimum": partial(near, "tilted_minimum"),
    "pbrf": partial(near, "pbrf"),
    "scratch_descent": scratch_descent,
    "scratch_starts": scratch_starts,
    "scratch_batches": scratch_batches,
    "scratch_fit": scratch_fit,
}


def leave_out(
    networks: list[Network],
    points: list[Points],
    chosen: list[Chosen],
    names: Iterable[str],
    repeats: int = 1,
    options: Mapping[str, Mapping[str, object]] | None = None,
) -> list[dict[str, Truth]]:
    """What really happens to the test losses of each network when what is chosen is left out, by each truth.

    Truths that go on from the network (`warm_...`) come with the same less what the control does (`..._minus_control`).

    Args:
        networks: with their test points and choices, one entry each.
        points: of each network.
        chosen: what is left out of each network for each of its test points.
        names: of `TRUTHS`.
        repeats: R, how often each truth is measured: in other orders of the batches or from other starts.
        options: of each truth, by its name; a number of repeats of its own among them.

    Raises:
        InputError: an unknown name, fewer than one repetition, or a bad option.
    """
    found: list[dict[str, Truth]] = [{} for _ in networks]
    for name in names:
        check_name("truth", name, tuple(TRUTHS))
        given = {"repeats": repeats, **(options or {}).get(name, {})}
        check_count("repeats", given["repeats"])
        truths = TRUTHS[name](networks, points, chosen, **given)
        for by_name, truth in zip(found, truths, strict=True):
            by_name[name] = truth
            if name.startswith("warm_"):
                by_name[name + MINUS_CONTROL] = truth.minus_control()
    return found


__all__ = ["TRUTHS", "leave_out"]
