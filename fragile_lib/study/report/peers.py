"""Where this library stands beside the fastest other one with the same numbers, from what `make bench-peers` wrote."""

from __future__ import annotations

from collections.abc import Iterator

OURS = "fragile_lib"  # as for any module; what else begins so are passes of the study's own networks
TWICE = 2.0  # times as fast as the fastest other one is the goal
SAME = 0.02  # relative difference of scores that count as the same numbers; single precision brings 1 to 2%
ORDER = 0.05  # difference of Spearman's correlations with leaving out, where a method draws and has no dense reference
LEAST_MB = 10.0  # below, memory is not compared


def standings(cases: list[dict]) -> list[dict]:
    """One entry for each case and method that this library and another one have run, equally accurate.

    `times`: the seconds of the fastest such library over ours, as any module has it; `lighter`: whether ours needs no
    more memory than that library; `reached`: whether it is at least `TWICE` as fast and `lighter`.
    """
    return [found for case in cases for found in _of_case(case)]


def _of_case(case: dict) -> Iterator[dict]:
    ran = [row for row in case["rows"] if not row["skipped"]]
    for method in dict.fromkeys(row["method"] for row in ran):
        of = [row for row in ran if row["method"] == method]
        mine = next((row for row in of if row["library"] == OURS), None)
        others = [row for row in of if mine and not row["library"].startswith(OURS) and equally_accurate(row, mine)]
        if not others:
            continue
        other = min(others, key=lambda row: row["seconds"])
        lighter = max(mine["memory_mb"], other["memory_mb"]) < LEAST_MB or mine["memory_mb"] <= other["memory_mb"]
        times = other["seconds"] / mine["seconds"]
        told = {"case": case["title"], "method": method, "library": other["library"]}
        yield told | {"times": times, "lighter": lighter, "reached": times >= TWICE and lighter}


def equally_accurate(row: dict, ours: dict) -> bool:
    """The same scores; of a method without a dense reference, scores as good at ordering what leaving out does."""
    if row["from_ours"] is not None and row["from_ours"] <= SAME:
        return True
    ranked = row["spearman"], ours["spearman"]
    return row["error"] is None and None not in ranked and abs(ranked[0] - ranked[1]) <= ORDER
