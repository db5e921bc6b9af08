"""Verdicts on the paper's claims, computed from the results table by the rules in params/claims.yaml.

The rules are written there in words and in numbers, before any result is seen. This module reads them and combines the
parts of a claim into one verdict; `claim_parts` judges a single part.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from fragile_lib.study.claim_data import TRANSFORMS, UNITS
from fragile_lib.study.claim_parts import KINDS, SIGNS, Part, PartVerdict, judge_part
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.files import load_yaml

VERDICTS = ("reproduced", "partly", "not", "undecided", "not run")
_NEEDED = {
    "value": {"paper"},
    "range": {"paper_high", "paper_low"},
    "steady": {"max_spread"},
    "trend": {"axis", "direction"},
    "difference": {"minus", "direction"},
    "step": {"axis", "direction", "cut"},
}


@dataclass(frozen=True)
class Claim:
    """One claim of the paper; `rule` is empty while nothing here can judge it."""

    id: str
    text: str
    paper: str
    source: str
    notebook: str
    rule: tuple[Part, ...] = ()
    say: str = ""  # sentence for the report's opening paragraph, with {ours} for the first part's estimate and interval


@dataclass(frozen=True)
class Verdict:
    """A claim, what was found for each part of its rule, and the verdict they add up to."""

    claim: Claim
    verdict: str
    parts: tuple[PartVerdict, ...] = ()
    profiles: tuple[str, ...] = ()


def evaluate_claims(results: pd.DataFrame, claims: Iterable[Claim]) -> list[Verdict]:
    """Judge each claim on `results`, the table of all runs (columns as in results.csv)."""
    verdicts = []
    for claim in claims:
        parts = tuple(judge_part(results, part) for part in claim.rule)
        profiles = tuple(sorted({profile for part in parts for profile in part.profiles}))
        verdicts.append(Verdict(claim, combine([part.outcome for part in parts]), parts, profiles))
    return verdicts


def combine(outcomes: list[str]) -> str:
    """Combine the outcomes of the parts of one claim.

    A part that is contradicted decides: the claim is then `partly` true if any part is at least partly reproduced, else
    `not`. Without a contradiction, a part that could not be judged leaves the claim undecided.
    """
    if all(outcome == "not run" for outcome in outcomes):
        return "not run"
    some = any(outcome in ("reproduced", "partly") for outcome in outcomes)
    if "not" in outcomes:
        return "partly" if some else "not"
    if any(outcome in ("undecided", "not run") for outcome in outcomes):
        return "undecided"
    return "partly" if "partly" in outcomes else "reproduced"


def load_claims(path: Path) -> list[Claim]:
    """Read claims and rules; `InputError` names the claim, the value and the remedy where one is malformed."""
    raw = load_yaml(Path(path))
    if not isinstance(raw.get("claims"), list):
        raise bad_input("claims", raw.get("claims"), f"give a list of claims [{Path(path).name}]")
    claims = [_claim(entry, raw.get("defaults") or {}, raw.get("words") or {}) for entry in raw["claims"]]
    twice = [name for name, n in Counter(claim.id for claim in claims).items() if n > 1]
    if twice:
        raise bad_input("claim id", twice[0], "occurs twice; give each claim its own")
    return claims


def _claim(entry: dict, defaults: dict, words: dict) -> Claim:
    name = entry.get("id")
    for key in ("id", "text", "paper", "source", "notebook"):
        if not isinstance(entry.get(key), str):
            raise bad_input(f"claim {name}: {key}", entry.get(key), "must be a string")
    _check_keys(f"claim {name}", entry, {field.name for field in fields(Claim)})
    where = defaults.get(entry["notebook"], {})
    parts = [part for raw in entry.get("rule") or [] for part in _parts(name, raw, where, words)]
    return Claim(**{**entry, "rule": tuple(parts)})


def _parts(claim: str, raw: dict, defaults: dict, words: dict) -> list[Part]:
    """Fill in the default selection and expand `for_each` into one part for each combination of its values."""
    raw = dict(raw)
    each = raw.pop("for_each", {})
    _check_part(f"claim {claim}, part {raw.get('label')!r}", raw)
    parts = []
    for combination in itertools.product(*each.values()):
        chosen = dict(zip(each, combination, strict=True))
        where = {**defaults, **raw.get("where", {}), **chosen}
        named = {column: words.get(value, value) for column, value in chosen.items()}
        parts.append(Part(**{**raw, "where": where, "label": raw["label"].format(**named)}))
    return parts


def _check_part(name: str, raw: dict) -> None:
    kind, unit = raw.get("kind"), raw.get("unit", "seed")
    _check_choice(f"{name}: kind", kind, KINDS)
    missing = sorted(({"label", "statistic"} | _NEEDED[kind]) - set(raw))
    if missing:
        raise bad_input(name, missing, f"a part of kind {kind} needs these keys")
    _check_keys(name, raw, {field.name for field in fields(Part)})
    for key, choices in {"direction": SIGNS, "transform": TRANSFORMS, "unit": UNITS, "paired": ("seed",)}.items():
        if raw.get(key) is not None:
            _check_choice(f"{name}: {key}", raw[key], choices)
    if kind == "range" and unit != "test_point":
        raise bad_input(f"{name}: unit", unit, "a part of kind range needs unit: test_point")
    if raw.get("paired") and kind != "difference":
        raise bad_input(f"{name}: paired", raw["paired"], f"only for kind difference, not {kind}; leave it out")


def _check_keys(name: str, raw: dict, known: set[str]) -> None:
    if set(raw) - known:
        raise bad_input(name, sorted(set(raw) - known), f"unknown keys; allowed: {sorted(known)}")


def _check_choice(name: str, value: object, choices: Iterable[str | None]) -> None:
    if value not in choices:
        raise bad_input(name, value, f"choose one of {', '.join(filter(None, choices))}")
