"""The computed parts of the index page: verdict counts, run matrix, results summary, provenance."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fragile_lib.study.claim_parts import number
from fragile_lib.agreement import seed_interval
from fragile_lib.study.claim_data import select
from fragile_lib.study.claims import VERDICTS, Verdict
from fragile_lib.study.report.source import Run, Study

VERDICT_WORDS = {
    "reproduced": "reproduced",
    "partly": "partly reproduced",
    "not": "not reproduced",
    "undecided": "undecided",
    "not run": "not run",
}
STATE_WORDS = {"failed later": "older result kept", "outdated": "outdated"}


@dataclass(frozen=True)
class Cell:
    """A number of the results table: its text and the value that sorts it."""

    text: str
    sort: float | str


def verdict_paragraph(study: Study, verdicts: list[Verdict]) -> list[str]:
    """The opening sentences: counts, key numbers, degenerate networks. Every number comes from the results."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    tested = len(verdicts) - counts["not run"]
    if not tested:
        return [f"None of the paper’s {len(verdicts)} claims listed here has been tested by the runs in this report."]
    found = [f"{counts[name]} {VERDICT_WORDS[name]}" for name in VERDICTS[:4] if counts[name]]
    sentences = [
        f"Of the {len(verdicts)} claims of the paper listed here, {tested} {_have(tested)} been put to the test: "
        f"{_join(found)}; {counts['not run']} {_have(counts['not run'])} not been run."
    ]
    for verdict in verdicts:
        first = verdict.parts[0] if verdict.parts else None
        if verdict.claim.say and first and first.estimate is not None:
            low, high = first.interval
            ours = f"{number(first.estimate)} [{number(low)}, {number(high)}]"
            sentences.append(verdict.claim.say.format(ours=ours))
    sentences += finding_sentences(study)
    if len(sentences) > 1:
        sentences.append(f"In brackets stand 95% bootstrap intervals {interval_words(verdicts)}.")
    outcomes = network_outcomes(study.records)
    bad = {name: n for name, n in outcomes.items() if name != "ok"}
    if bad:
        said = _join([f"{n} {name.replace('_', ' ')}" for name, n in bad.items()])
        sentences.append(
            f"Of {sum(outcomes.values())} trained networks {sum(bad.values())} had a named outcome other than ok "
            f"({said}); they are counted below, and none was dropped."
        )
    return sentences


def interval_words(verdicts: list[Verdict]) -> str:
    """What the intervals of the verdicts are over: test points are named only where a part counts them."""
    units = any(part.n_units for verdict in verdicts for part in verdict.parts)
    return "over seeds (over seeds and their test points where these are counted)" if units else "over seeds"


def finding_sentences(study: Study) -> list[str]:
    """What the study found beyond the claims, in the words of report.yaml and the numbers of the results.

    A finding is `say`, a text with {0}, {1} ..., and `values`, for each of them a `statistic` and the rows `where` it
    stands: the mean over seeds with its interval. A finding with a number that the results do not give is left out.
    """
    sentences = []
    for finding in study.settings.get("findings", []):
        numbers = [_mean_and_interval(study.results, value) for value in finding["values"]]
        if all(numbers):
            sentences.append(finding["say"].format(*numbers))
    return sentences


def _mean_and_interval(results: pd.DataFrame, value: dict) -> str:
    rows = select(results, value["where"])
    found = pd.to_numeric(rows.get(value["statistic"], pd.Series(dtype=float)), errors="coerce").dropna()
    low, high = seed_interval(found.to_numpy())
    return f"{number(found.mean())} [{number(low)}, {number(high)}]" if np.isfinite(low) else ""


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _join(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def network_outcomes(records: list[dict]) -> Counter:
    """Count the certificates of all runs by status, the most frequent first."""
    outcomes = Counter(str(c.get("status", "ok")) for record in records for c in record.get("certificates") or [])
    return Counter(dict(outcomes.most_common()))


def run_outcomes(record: dict) -> list[str]:
    """What the certificates of one run say that is not ok: "descent: 3 of 10 seeds: constant"."""
    table = pd.DataFrame(record.get("certificates") or [])
    if table.empty or "status" not in table:
        return []
    fits = table.get("fit", pd.Series("network", index=table.index)).fillna("network")
    said = []
    for fit, group in table.groupby(fits, sort=False):
        for status, n in group["status"].value_counts().items():
            if status != "ok":
                said.append(f"{fit}: {n} of {len(group)} seeds: {str(status).replace('_', ' ')}")
    return said


def run_groups(study: Study) -> list[dict]:
    """The run matrix: for each notebook the settings that differ between its runs, and the runs."""
    groups = []
    for notebook in dict.fromkeys(run.notebook for run in study.runs):
        runs = [run for run in study.runs if run.notebook == notebook]
        blocks = pd.DataFrame([run.record["run"] for run in runs if run.record and run.record.get("run")])
        columns = [c for c in blocks if blocks[c].astype(str).nunique() > 1 or c in ("depth", "width", "weight_decay")]
        groups.append({
            "notebook": notebook,
            "columns": columns,
            "runs": runs,
            "states": Counter(run.state for run in runs),
            "seconds": sum(run.record.get("seconds") or 0 for run in runs if run.record and not run.outdated),
        })  # fmt: skip
    return groups


def setting_text(record: dict | None, column: str) -> str:
    """One setting of a run as the matrix shows it."""
    value = ((record or {}).get("run") or {}).get(column)
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def failure_text(run: Run) -> str:
    """One line that says why a run failed."""
    failure = run.failure or {}
    lines = str(failure.get("message") or "no message").strip().splitlines() or ["no message"]
    return f"{failure.get('error', 'Error')}: {lines[0]}"[:300]


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
    words = study.settings.get("words", {})
    shared = [c for c in by if results[c].nunique(dropna=False) == 1]
    varying = [c for c in by if c not in shared] or by[:1]
    slices = [(c["label"], _slice(results, c, varying)) for c in wanted["columns"]]
    slices = [(label, found) for label, found in slices if found]
    rows = []
    for keys, group in results.groupby(varying, sort=False, dropna=False):
        seeds = group["seed"].nunique()
        numbers = [_mean(found.get(_comparable(keys)), seeds) for _, found in slices]
        rows.append([_setting(key, words) for key in keys] + numbers)
    return {
        "heads": [_word(column, words) for column in varying],
        "columns": [label for label, _ in slices],
        "rows": rows,
        "common": ", ".join(f"{_word(c, words)} {_setting(results[c].iloc[0], words).text}" for c in shared),
    }


def _word(column: str, words: dict) -> str:
    return str(words.get(column, column.replace("_", " ")))


def _slice(results: pd.DataFrame, column: dict, by: list[str]) -> dict[tuple, np.ndarray]:
    """One finite number for each seed, by group; a group without any is left out."""
    rows = select(results, column.get("where") or {})
    if column["statistic"] not in rows:
        return {}
    rows = rows[np.isfinite(pd.to_numeric(rows[column["statistic"]], errors="coerce").to_numpy(float))]
    seeds = rows.groupby([*by, "seed"], sort=False, dropna=False)[column["statistic"]].mean().reset_index()
    groups = seeds.groupby(by, sort=False, dropna=False)[column["statistic"]]
    return {_comparable(keys): values.to_numpy(float) for keys, values in groups}


def _comparable(keys: tuple) -> tuple:
    """The keys of a group with None for what is missing: NaN, which pandas gives, does not equal itself."""
    return tuple(None if pd.isna(key) else key for key in keys)


def _setting(value: object, words: dict) -> Cell:
    if isinstance(value, int | float | np.number):
        return Cell("" if pd.isna(value) else f"{value:g}", float(value))
    return Cell(str(words.get(value, value)), str(value))


def _mean(values: np.ndarray | None, seeds: int) -> Cell:
    if values is None:
        return Cell("–", float("-inf"))
    low, high = seed_interval(values)
    interval = f" [{number(low)}, {number(high)}]" if np.isfinite(low) else ""
    fewer = f" n={len(values)}" if len(values) < seeds else ""
    return Cell(f"{number(values.mean())}{interval}{fewer}", float(values.mean()))


def provenance(study: Study) -> list[tuple[str, str]]:
    """Where the numbers come from, in the words of the records themselves."""
    records = study.records
    if not records:
        return []
    dirty = sum(bool((r.get("git") or {}).get("dirty")) for r in records)
    versions: dict[str, list] = {}
    for record in records:
        for name, version in (record.get("versions") or {}).items():
            versions.setdefault(name, []).append(version)
    memory = [r["peak_memory_mb"] for r in records if r.get("peak_memory_mb")]
    return [
        ("Profile", study.profile),
        ("Runs finished", str(len(records))),
        ("Computing time, all runs", duration(sum(r.get("seconds") or 0 for r in records))),
        ("Peak memory of a run", f"{max(memory):.0f} MB" if memory else "not recorded"),
        ("Dates", " to ".join(dict.fromkeys(_dates(records))) or "not recorded"),
        ("Git commit", _variants((r.get("git") or {}).get("commit") for r in records)),
        ("Uncommitted changes", f"yes, in {dirty} of {len(records)} runs" if dirty else "none"),
        ("Device", _variants(r.get("device") for r in records)),
        ("Machine", _variants(r.get("machine") for r in records)),
        ("Threads of a run", _variants(r.get("threads") for r in records)),
        ("Versions", "; ".join(f"{name} {_variants(found)}" for name, found in versions.items())),
    ]


def _dates(records: list[dict]) -> list[str]:
    started = sorted(str(r["started"])[:10] for r in records if r.get("started"))
    finished = sorted(str(r["finished"])[:10] for r in records if r.get("finished"))
    return started[:1] + finished[-1:]


def _variants(values: object) -> str:
    return ", ".join(dict.fromkeys(str(v) for v in values if v not in (None, ""))) or "not recorded"


def duration(seconds: float) -> str:
    """Seconds as a reader would say them."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
