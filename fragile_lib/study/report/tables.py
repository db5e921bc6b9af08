"""The computed parts of the report: verdict counts, findings, run matrix, results summary, methods."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd

from fragile_lib.agreement import MIN_SEEDS, SEED, seed_interval, summarise
from fragile_lib.study.claim_data import select
from fragile_lib.study.claims import UNTESTED, VERDICTS, PartVerdict, Verdict, number
from fragile_lib.study.report.source import Study

VERDICT_WORDS = {**{verdict: verdict for verdict in VERDICTS}, "partly": "partly reproduced", "not": "not reproduced"}
COUNTED = {  # where a verdict's own word does not count well
    "consistent": "consistent with the paper’s figure",
    "differs: higher": "higher than the paper’s figure",
    "differs: lower": "lower than the paper’s figure",
}
Cell = tuple[str, float | str]  # a text, and the value that sorts it


def verdict_counts(verdicts: list[Verdict]) -> str:
    """How many claims have which verdict, in a sentence or two."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    if counts["not run"] == len(verdicts):
        return f"None of the paper’s {len(verdicts)} claims listed here has been tested by the runs in this report."
    named = {name: f"{counts[name]} {COUNTED.get(name, VERDICT_WORDS[name])}" for name in VERDICTS if counts[name]}
    judged, others = ([text for name, text in named.items() if (name in UNTESTED) == out] for out in (False, True))
    total = sum(count for name, count in counts.items() if name not in UNTESTED)
    told = f"Of the {len(verdicts)} claims of the paper listed here, {total} could be judged"
    told += f": {_join(judged)}." if judged else "."
    return told + (f" The others: {_join(others)}." if others else "")


def interval_of(part: PartVerdict) -> str:
    """The interval of a part; of a few numbers it says that there is none worth the name."""
    few = (part.n_units or part.n_seeds) <= MIN_SEEDS
    return "too few" if few else "{} to {}".format(*(number(end) for end in part.interval))


def interval_words(verdicts: list[Verdict]) -> str:
    """What the intervals of the verdicts are over: test points are named only where a part counts them."""
    units = any(part.n_units for verdict in verdicts for part in verdict.parts)
    return "over seeds (over seeds and their test points where these are counted)" if units else "over seeds"


def finding_sentences(study: Study, which: str, with_intervals: bool = False) -> list[str]:
    """What the study found beyond the claims, in the words of report.yaml and the numbers of the results.

    An entry of the list `which` there is `say`, a text with {0}, {1} ..., and `values`, for each of them a `statistic`
    and the rows `where` it stands: the mean over seeds. Where one of the conditions `when` ("{0} > {1} + 0.1") does not
    hold, `otherwise` is said instead. One with a number that the results do not give is left out.
    """
    sentences = []
    for finding in study.settings.get(which, []):
        found = [_numbers(study.results, value) for value in finding.get("values", [])]
        if all(len(numbers) >= MIN_SEEDS for numbers in found):
            means = [float(numbers.mean()) for numbers in found]
            held = all(pd.eval(condition.format(*means), engine="python") for condition in finding.get("when", []))
            intervals = map(with_interval, means, map(seed_interval, found), map(len, found))
            told = intervals if with_intervals else map(number, means)
            sentences.append(finding["say" if held else "otherwise"].format(*told))
    return sentences


def _numbers(results: pd.DataFrame, value: dict) -> pd.Series:
    rows = select(results, value["where"])
    return pd.to_numeric(rows.get(value["statistic"], pd.Series(dtype=float)), errors="coerce").dropna()


def with_interval(mean: float, interval: tuple[float, float], n: int) -> str:
    """A mean of n numbers; of a few there is no interval worth the name, nor is one told that no digit shows."""
    ends = [number(end) for end in interval]
    if n <= MIN_SEEDS:
        return f"{number(mean)} ({n} numbers)"
    return number(mean) if ends == [number(mean)] * 2 else f"{number(mean)} [{', '.join(ends)}]"


def _join(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def outcomes(study: Study) -> Counter:
    """How many trained networks have which outcome."""
    return Counter(str(c.get("status", "ok")) for record in study.records for c in record.get("certificates") or [])


def run_outcomes(record: dict) -> list[str]:
    """What the certificates of one run say that is not ok: "descent: 3 of 10 seeds: constant"."""
    fits: dict[str, list[str]] = {}
    for certificate in record.get("certificates") or []:
        fits.setdefault(certificate.get("fit") or "network", []).append(str(certificate.get("status", "ok")))
    return [
        f"{fit}: {n} of {len(found)} seeds: {status.replace('_', ' ')}"
        for fit, found in fits.items()
        for status, n in Counter(found).most_common()
        if status != "ok"
    ]


def run_groups(study: Study) -> list[dict]:
    """The run matrix: for each notebook the settings that differ between its runs, and the runs."""
    groups, always = [], ("depth", "width", "weight_decay")
    for notebook in dict.fromkeys(run.notebook for run in study.runs):
        runs = [run for run in study.runs if run.notebook == notebook]
        blocks = pd.DataFrame([run.record["run"] for run in runs if run.record and run.record.get("run")])
        groups.append({
            "notebook": notebook,
            "columns": [c for c in blocks if c in always or blocks[c].astype(str).nunique() > 1],
            "runs": runs,
            "states": Counter(run.state for run in runs),
            "seconds": sum(run.record.get("seconds") or 0 for run in runs if run.record and not run.outdated),
        })  # fmt: skip
    return groups


def summary_table(study: Study) -> dict:
    """Mean over seeds with its interval, one row for each group, one column for each slice in params/report.yaml.

    Returns the `heads` of the setting columns, the `columns` of the numbers, the `rows`, and the settings that all rows
    share (`common`), which are said once instead. A slice without any number is left out.
    """
    wanted = study.settings.get("summary") or {}
    results = select(study.results, wanted.get("where") or {}) if len(study.results) else study.results
    by = [column for column in wanted.get("by", []) if column in results]
    if results.empty or not by:
        return {"heads": [], "columns": [], "rows": [], "common": ""}
    shared = [c for c in by if results[c].nunique(dropna=False) == 1]
    varying = [c for c in by if c not in shared] or by[:1]
    groups = results.groupby(varying, sort=False, dropna=False)["seed"].nunique().reset_index()
    rows = [[_setting(value, study) for value in values] for values in groups[varying].itertuples(index=False)]
    labels = []
    for column in wanted["columns"]:
        if column["statistic"] not in results:
            continue
        found = summarise(select(results, column.get("where") or {}), varying, column["statistic"], seed=SEED)
        numbers = groups.merge(found, "left", varying)[["mean", "low", "high", "n", "seed"]]
        if (numbers["n"] > 0).any():
            labels.append(column["label"])
            for row, values in zip(rows, numbers.itertuples(index=False), strict=True):
                row.append(_cell(*values))
    common = ", ".join(f"{word(c, study)} {_setting(results[c].iloc[0], study)[0]}" for c in shared)
    return {"heads": [word(column, study) for column in varying], "columns": labels, "rows": rows, "common": common}


def word(name: object, study: Study) -> str:
    """What a name of a notebook, a column or a code is called in the report."""
    return str(study.settings.get("words", {}).get(name, str(name).replace("_", " ")))


def _setting(value: object, study: Study) -> Cell:
    if isinstance(value, int | float | np.number):
        return "" if pd.isna(value) else f"{value:g}", float(value)
    return str(study.settings.get("words", {}).get(value, value)), str(value)


def _cell(mean: float, low: float, high: float, n: float, seeds: int) -> Cell:
    if not n > 0:
        return "–", float("-inf")
    said = with_interval(mean, (low, high), int(n)) if n > MIN_SEEDS else number(mean)
    return said + (f" n={n:g}" if n < seeds else ""), float(mean)


def methods_table(study: Study) -> list[dict]:
    """What each estimator and ground truth answers, as params/methods.yaml says, and the data sets that have it."""
    columns, rows = {"estimator": "estimator", "truth": "ground_truth"}, []
    for entry in study.methods:
        found = select(study.results, {columns[entry["kind"]]: entry["name"]})
        sets = found["dataset"].dropna().unique() if len(found) else []
        rows.append({**entry, "datasets": ", ".join(word(name, study) for name in sets)})
    return rows


def duration(seconds: float) -> str:
    """Seconds as a reader would say them."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
