"""Verdicts on the paper's claims, computed from the results table by the rules in params/claims.yaml.

The rules are written there in words and in numbers, before any result is seen. A claim has parts: each selects rows,
reduces them to one number for each seed or test point (`claim_data`), and judges their mean; the outcomes of the parts
are combined into one verdict. The kinds of part (`value`, `range`, `steady`, `trend`, `difference`, `step`) are
explained in words at the head of that file.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from fragile_lib.agreement import MIN_SEEDS
from fragile_lib.study.claim_data import TRANSFORMS, UNITS, Numbers, Sample, Undecidable, cell_table, select
from fragile_lib.study.declaration import SCALARS, Declaration, check_values, declared
from fragile_lib.tools.errors import require
from fragile_lib.tools.files import load_yaml

TOLERANCE = 0.05  # of the rule before; what it widened an interval by
NEAR = 0.1  # how near to the paper's figure the whole interval of our mean lies where the figure is reproduced
RELIABLE = 0.5  # reliability of a truth below which nothing is said of estimates
CENTRAL = (2.5, 97.5)  # percentiles of our single numbers among which a consistent figure lies
RANGE_TOLERANCE = 0.1  # the ends of a range are single numbers, and vary more than a mean
MIN_SPREAD = 0.2  # of the numbers of a range, largest minus smallest within a seed
SIGNIFICANT = 0.05
MIN_CHANGE = 0.05
NOT_DEGENERATE = ("ok", "indefinite")
SIGNS = {"falls": -1, "grows": 1, "negative": -1, "positive": 1}
Judgement = tuple[str, str, Sample]  # outcome, sentence, what they rest on


@dataclass(frozen=True)
class Part:
    """A rule part as written in the YAML file, defaults filled in and `for_each` expanded."""

    kind: str
    label: str
    statistic: str
    where: dict = field(default_factory=dict)
    minus: dict | None = None  # the columns that differ in the selection that is subtracted
    axis: str | None = None
    direction: str | None = None
    transform: str | None = None
    paper: float | None = None
    tolerance: float | None = None
    min_change: float = MIN_CHANGE
    cut: float | None = None
    at_each: bool = False
    unit: str = "seed"
    paired: str | None = None  # "seed": the two selections of a difference are averaged over test points first
    paper_high: float | None = None
    paper_low: float | None = None
    max_spread: float | None = None  # of a number that is steady over seeds
    at_least: dict = field(default_factory=dict)  # column -> the number from which on a run is of the claim's scale

    @property
    def margin(self) -> float:
        """The tolerance, or the default of the kind."""
        default = RANGE_TOLERANCE if self.kind == "range" else TOLERANCE
        return default if self.tolerance is None else self.tolerance


@dataclass(frozen=True)
class PartVerdict:
    """What the results say about one part."""

    kind: str
    label: str
    outcome: str  # one of `VERDICTS`
    sentence: str
    before: str = ""  # the outcome by the rule before repetitions and scale counted
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    n_seeds: int = 0
    n_units: int = 0  # test points, in a part with `unit: test_point`
    n_networks: int = 0
    degenerate: dict[str, int] = field(default_factory=dict)
    profiles: tuple[str, ...] = ()
    reliability: float | None = None  # of the truth, the mean where it was repeated
    direction: str = ""  # where ours lies, beside the paper's figure or the claimed sign
    p: float | None = None  # of a part that is judged by a sign: of no change, two-sided, adjusted by Holm for all such

    @property
    def corrected(self) -> str:
        """The outcome where all signs of the study must hold together: one with a large adjusted p is not told."""
        refuted = self.p is not None and self.p > SIGNIFICANT and self.outcome in ("reproduced", "partly")
        return "not" if refuted else self.outcome


def counted(n_seeds: int, n_units: int) -> str:
    """Say what an interval is over, in the words of the report."""
    seeds = f"{n_seeds} seed" if n_seeds == 1 else f"{n_seeds} seeds"
    if not n_units:
        return seeds
    few = "; the interval covers test points only" if n_seeds < MIN_SEEDS else ""
    return f"{n_units} test points of {seeds}{few}"


def judge_part(results: pd.DataFrame, part: Part) -> PartVerdict:
    """Judge one part on the results table (one row per run, seed and the choices named by the columns)."""
    selections = [part.where] if part.minus is None else [part.where, {**part.where, **part.minus}]
    rows = [select(results, where) for where in selections]
    counts = _count(pd.concat(rows))
    if any(r.empty for r in rows):
        return PartVerdict(part.kind, part.label, "not run", "No run has these settings.", "not run", **counts)
    try:
        tables = [cell_table(r, part.statistic, part.transform, part.axis, part.unit) for r in rows]
        data = Numbers(tables, part.statistic, part.unit, part.paired)
        outcome, sentence, sample = _KINDS[part.kind][0](data, part)
    except Undecidable as reason:
        return PartVerdict(part.kind, part.label, "undecided", f"{reason}", "undecided", **counts)
    before = _value_before(sample, part) if part.kind == "value" else outcome
    if reason := _untested(pd.concat(rows), part, counts["reliability"]):
        outcome, sentence = reason[0], f"{sentence} {reason[1]}"
    found = sample.mean, sample.interval, sample.n_seeds, sample.n_units
    return PartVerdict(
        part.kind, part.label, outcome, sentence, before, *found, **counts, direction=_direction(part, sample.mean)
    )


def _direction(part: Part, mean: float) -> str:
    """Where our number lies: beside the paper's figure, or whether it has the claimed sign."""
    if part.kind == "value":
        return "near" if abs(mean - part.paper) <= NEAR else "higher" if mean > part.paper else "lower"
    if part.direction:
        return f"{part.direction}, {'as' if mean * SIGNS[part.direction] > 0 else 'not as'} claimed"
    return ""


def _untested(rows: pd.DataFrame, part: Part, reliability: float | None) -> tuple[str, str] | None:
    """Why the rows could not have shown what is claimed: the scale, or the noise of the truth."""
    for column, least in part.at_least.items():
        most = rows[column].max() if column in rows else np.inf
        if most < least:
            return "not tested at this scale", f"Judged at {column} {most:g}; the claim is of {least:g} at least."
    if part.statistic.startswith(("spearman", "pearson")) and reliability is not None and reliability < RELIABLE:
        return "truth too noisy", f"The truth’s reliability is {number(reliability)}, below {RELIABLE:g}."
    return None


def _judge_value(data: Numbers, part: Part) -> Judgement:
    """Judge the mean against the paper's figure, which is of one run, and the figure against our single runs."""
    sample = data.sample(lambda table: table.iloc[:, 0])
    low, high = sample.interval
    said = f"{_estimate(sample)}; the paper’s figure is {part.paper:g}: "
    if part.paper - NEAR <= low and high <= part.paper + NEAR:
        return "reproduced", said + f"the whole interval lies within {NEAR:g} of it.", sample
    least, most = np.percentile(sample.singles, CENTRAL)
    single = f"the central 95% of the single {data.noun}, {number(least)} to {number(most)}"
    if least <= part.paper <= most:
        return "consistent", said + f"it lies within {single}, and the mean is not known to be near it.", sample
    side = "higher" if sample.mean > part.paper else "lower"
    return f"differs: {side}", said + f"it lies outside {single}.", sample


def _value_before(sample: Sample, part: Part) -> str:
    """The outcome by the rule before: the figure in the widened interval; partly where it is among the single ones."""
    if sample.interval[0] - part.margin <= part.paper <= sample.interval[1] + part.margin:
        return "reproduced"
    return "partly" if sample.singles.min() <= part.paper <= sample.singles.max() else "not"


def _judge_range(data: Numbers, part: Part) -> Judgement:
    """Judge the spread within a seed by its interval, and its ends by their distance from the paper's."""
    sample, high, low = data.spread()
    said = f"The spread within a seed is {_estimate(sample)}: "
    if not sample.interval[0] > MIN_SPREAD:
        return "not", said + f"the interval is not wholly above {number(MIN_SPREAD)}.", sample
    said += f"wholly above {number(MIN_SPREAD)}. The largest and smallest are {number(high)} and {number(low)}, "
    near = max(abs(high - part.paper_high), abs(low - part.paper_low)) <= part.margin
    said += f"{'both' if near else 'not both'} within {part.margin:g} of the paper’s {part.paper_high:g}"
    return "reproduced" if near else "partly", said + f" and {part.paper_low:g}.", sample


def _judge_steady(data: Numbers, part: Part) -> Judgement:
    """Judge the standard deviation over seeds against the largest that still counts as steady."""
    sample = data.deviation()
    said, most = _estimate(replace(sample, n_units=0)), number(part.max_spread)
    if sample.interval[1] < part.max_spread:
        return "reproduced", f"{said}: the interval is wholly below {most}.", sample
    if sample.mean < part.max_spread:
        return "partly", f"{said}: below {most}, but its interval is not.", sample
    return "not", f"{said}: not below {most}.", sample


def _judge_trend(data: Numbers, part: Part) -> Judgement:
    x = data.means.columns
    if len(x) < 2:
        raise Undecidable(f"Only one value of {part.axis} has results.")
    return _judge_sign(data.sample(_end_to_end_change), part, f"from {part.axis} {x.min():g} to {x.max():g}")


def _end_to_end_change(table: pd.DataFrame) -> pd.Series:
    """Per row: least-squares slope over the columns times their range."""
    x = table.columns.to_numpy(float)
    # A seed with few axis values would be extrapolated over the whole range: it needs half of them, and at least two.
    table = table[table.notna().sum(axis=1) >= max(2, len(x) / 2)]
    at = np.where(table.notna(), x, np.nan)
    dx = at - np.nanmean(at, axis=1, keepdims=True)
    slopes = np.nansum(dx * table.to_numpy(), axis=1) / np.nansum(dx * dx, axis=1)
    return pd.Series(slopes * (x.max() - x.min()), index=table.index)


def _judge_difference(data: Numbers, part: Part) -> Judgement:
    table = data.means.dropna(how="all").dropna(axis=1, how="all")
    x = table.columns
    over = f"in the mean over {part.axis} {x.min():g} to {x.max():g}" if part.axis and len(x) > 1 else ""
    outcome, sentence, sample = _judge_sign(data.sample(lambda means: means[x].mean(axis=1)), part, over)
    if not part.at_each:
        return outcome, sentence, sample
    judged = (table.mean() * SIGNS[part.direction] > 0) & data.enough_at()[x]
    if judged.all():
        return outcome, sentence + f" The sign holds at every {part.axis}.", sample
    failing = ", ".join(f"{value:g}" for value in x[~judged])
    sentence += f" The sign does not hold, or has too few {data.noun}, at {part.axis} {failing}."
    return ("partly" if outcome == "reproduced" else outcome), sentence, sample


def _judge_step(data: Numbers, part: Part) -> Judgement:
    beyond = data.means.columns.to_numpy(float) > part.cut
    if beyond.all() or not beyond.any():
        raise Undecidable(f"No results on {'this' if beyond.all() else 'the far'} side of {part.axis} {part.cut:g}.")
    sample = data.sample(lambda table: table.loc[:, beyond].mean(axis=1) - table.loc[:, ~beyond].mean(axis=1))
    return _judge_sign(sample, part, f"beyond {part.axis} {part.cut:g}, against up to it")


def _judge_sign(sample: Sample, part: Part, over: str) -> Judgement:
    """Reproduced: interval wholly on the claimed side and the mean large enough; partly: on that side but smaller."""
    sign = SIGNS[part.direction]
    low, high = sorted(sign * end for end in sample.interval)
    said, side = " ".join(filter(None, [_estimate(sample), over])), "above" if sign > 0 else "below"
    if low <= 0:
        return "not", said + f": the interval is not wholly {side} zero, as claimed.", sample
    if sign * sample.mean < part.min_change:
        return "partly", said + f": of the claimed sign, but smaller than {number(part.min_change)}.", sample
    return "reproduced", said + f": of the claimed sign, and at least {number(part.min_change)}.", sample


def _estimate(sample: Sample) -> str:
    low, high = sample.interval
    over = counted(sample.n_seeds, sample.n_units)
    return f"{number(sample.mean)} (95% interval {number(low)} to {number(high)}, {over})"


def number(value: float) -> str:
    """Format for prose and tables: two decimals, three significant digits beyond 100, a real minus sign."""
    digits = f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}"
    return digits.replace("-", "−").replace("−0.00", "0.00")


def _count(rows: pd.DataFrame) -> dict:
    """Count networks (run and seed) and, by name, the degenerate ones; their profiles, the truth's reliability."""
    if rows.empty:
        return {"n_networks": 0, "degenerate": {}, "profiles": ()}
    known = rows["reliability"].dropna() if "reliability" in rows else pd.Series(dtype=float)
    bad = rows[~rows["status"].isin(NOT_DEGENERATE)].drop_duplicates(["run_id", "seed"])
    return {
        "n_networks": len(rows.drop_duplicates(["run_id", "seed"])),
        "degenerate": {str(name): int(n) for name, n in bad["status"].value_counts().items()},
        "profiles": tuple(sorted(str(p) for p in rows["profile"].dropna().unique())),
        "reliability": float(known.mean()) if len(known) else None,
    }


_KINDS = {  # each with its judge, and the keys that it needs
    "value": (_judge_value, {"paper"}),
    "range": (_judge_range, {"paper_high", "paper_low"}),
    "steady": (_judge_steady, {"max_spread"}),
    "trend": (_judge_trend, {"axis", "direction"}),
    "difference": (_judge_difference, {"minus", "direction"}),
    "step": (_judge_step, {"axis", "direction", "cut"}),
}
BY_SIGN = ("trend", "difference", "step")
UNTESTED = ("truth too noisy", "not tested at this scale", "undecided", "not run")
AGAINST = ("differs: higher", "differs: lower", "not")
VERDICTS = ("reproduced", "consistent", "partly", *AGAINST, *UNTESTED)


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

    @property
    def before(self) -> str:
        """The verdict by the rule before repetitions and scale counted."""
        return combine([part.before for part in self.parts])

    @property
    def corrected(self) -> str:
        """The verdict where the signs of all claims must hold together (Holm)."""
        return combine([part.corrected for part in self.parts])

    @property
    def profiles(self) -> tuple[str, ...]:
        """The profiles of the runs that it rests on."""
        return tuple(sorted({profile for part in self.parts for profile in part.profiles}))


def evaluate_claims(results: pd.DataFrame, claims: Iterable[Claim]) -> list[Verdict]:
    """Judge each claim on `results`, the table of all runs (columns as in results.csv)."""
    claims = list(claims)
    parts = iter(_adjusted([judge_part(results, part) for claim in claims for part in claim.rule]))
    judged = [(claim, tuple(itertools.islice(parts, len(claim.rule)))) for claim in claims]
    return [Verdict(claim, combine([part.outcome for part in parts]), parts) for claim, parts in judged]


def _adjusted(parts: list[PartVerdict]) -> list[PartVerdict]:
    """The parts with p-values adjusted by Holm (1979) for all that are judged by a sign.

    The p-value is that of the normal distribution with the part's mean whose central 95% are as wide as its bootstrap
    interval. Holm: the i-th smallest of h times h - i + 1, and never below one before it.
    """
    signs = [i for i, part in enumerate(parts) if part.kind in BY_SIGN and part.interval is not None]
    widths = np.array([np.ptp(parts[i].interval) / (2 * stats.norm.ppf(0.975)) for i in signs])
    means = np.array([abs(parts[i].estimate) for i in signs])
    raw = 2 * stats.norm.sf(np.divide(means, widths, out=np.full(len(signs), np.inf), where=widths > 0))
    order = np.argsort(raw)
    held = np.minimum(np.maximum.accumulate(raw[order] * np.arange(len(signs), 0, -1)), 1.0)
    found = dict(zip((signs[i] for i in order), held.tolist(), strict=True))
    return [replace(part, p=found.get(i)) for i, part in enumerate(parts)]


def combine(outcomes: list[str]) -> str:
    """Combine the outcomes of the parts of one claim.

    A part that is contradicted decides: the claim is then `partly` true if any part is at least partly reproduced, else
    it differs as all its parts do, or is `not` reproduced. Without a contradiction, a part that could not be judged
    leaves the claim untested, for that part's reason; then what is partly or only consistent counts before what is
    reproduced.
    """
    if all(outcome == "not run" for outcome in outcomes):
        return "not run"
    against = [outcome for outcome in outcomes if outcome in AGAINST]
    if against:
        if any(outcome in ("reproduced", "consistent", "partly") for outcome in outcomes):
            return "partly"
        return against[0] if len(set(against)) == 1 else "not"
    missing = [reason for reason in UNTESTED if reason in outcomes]
    if missing:
        return "undecided" if missing[0] == "not run" else missing[0]
    return next(outcome for outcome in ("partly", "consistent", "reproduced") if outcome in outcomes)


def load_claims(path: Path) -> list[Claim]:
    """Read claims and rules; `InputError` names the claim, the value and the remedy where one is malformed."""
    raw = check_values(FILE, load_yaml(path), ("claims",), what="a section of the claims")
    shared = [raw.get(key, {}) for key in ("defaults", "scale", "words")]
    claims = [_claim(entry, *shared) for entry in raw["claims"]]
    twice = [name for name, n in Counter(claim.id for claim in claims).items() if n > 1]
    require(not twice, "claim id", ", ".join(twice), "occurs twice; give each claim its own")
    return claims


def _claim(entry: dict, defaults: dict, scale: dict, words: dict) -> Claim:
    place, needed = f"claim {entry.get('id')}: ", ("id", "text", "paper", "source", "notebook")
    entry = check_values(CLAIM, entry, needed, place, "a key of a claim")
    shared = {"where": defaults.get(entry["notebook"], {}), "at_least": scale.get(entry["notebook"], {})}
    parts = [part for raw in entry.get("rule", []) for part in _parts(entry["id"], raw, shared, words)]
    return Claim(**{**entry, "rule": tuple(parts)})


def _parts(claim: str, raw: dict, shared: dict, words: dict) -> list[Part]:
    """Fill in what is shared by a notebook's claims, and expand `for_each` into a part for each of its combinations."""
    place = f"claim {claim}, part {raw.get('label')!r}: "
    kind = PART["kind"].check(raw.get("kind"), place)
    raw = check_values(PART, raw, ("label", "statistic", *_KINDS[kind][1]), place, "a key of a part")
    unit, each = raw.get("unit", "seed"), raw.pop("for_each", {})
    counts = kind != "range" or unit == "test_point"
    require(counts, f"{place}unit", unit, "a part of kind range needs unit: test_point")
    fits = kind == "difference" or not raw.get("paired")
    require(fits, f"{place}paired", raw.get("paired"), f"only for kind difference, not {kind}; leave it out")
    parts = []
    for combination in itertools.product(*each.values()):
        chosen = dict(zip(each, combination, strict=True))
        where = {**shared["where"], **raw.get("where", {}), **chosen}
        named = {column: words.get(value, value) for column, value in chosen.items()}
        parts.append(Part(**{**shared, **raw, "where": where, "label": raw["label"].format(**named)}))
    return parts


def _fields(fields_of: type, **choices: Iterable[str]) -> dict[str, Declaration]:
    """The fields of a dataclass as entries of a file, those of a plain type."""
    types = {one.name: one.type.removesuffix(" | None").replace("dict", "mapping") for one in fields(fields_of)}
    types = {name: type for name, type in types.items() if type in SCALARS}
    return {name: Declaration(name, type, choices=tuple(choices.get(name, ()))) for name, type in types.items()}


FILE = declared("mapping", "defaults", "scale", "words") | declared("list", "claims", of="mapping")
CLAIM = _fields(Claim) | declared("list", "rule", of="mapping")
CHOICES = {"kind": _KINDS, "direction": SIGNS, "transform": filter(None, TRANSFORMS), "unit": UNITS, "paired": ["seed"]}
PART = _fields(Part, **CHOICES) | declared("mapping", "for_each")
