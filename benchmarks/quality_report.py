"""Format the results of a quality measurement as JSON and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.contenders.registry import CONTENDERS
from benchmarks.corpora import Dataset
from benchmarks.published import AUTORAG, CARD, PUBLISHED, Figures, standard_autorag_ndcg_3
from benchmarks.quality_change import Change, Difference
from benchmarks.quality_run import Run
from benchmarks.quality_speed import CORPUS, Speed

_NDCG_CHANGE = "change of NDCG@10, points (95 % interval)"
REVERSED = "NDCG@3 reversed"
"""Metric for the AutoRAG benchmark only; see published.py."""
_SHARED = ("NDCG@1", "F1@1", "NDCG@3", "F1@3")
"""Metrics that the model card publishes."""
_DEFINITIONS = (
    "The figures are means over the queries in percent. NDCG, recall, MRR and precision are defined as in "
    "trec_eval:\n\n"
    "- NDCG@k: gain = relevance grade, discount = log2(rank + 1)\n"
    "- F1@k: harmonic mean of precision and recall of the first k passages\n"
    "- Recall@k: share of the relevant passages that are among the first k\n"
    "- MRR@10: 1 / rank of the first relevant passage, 0 if this rank is above 10"
)
_AUTORAG_NOTE = (
    "The card's NDCG@3 for this dataset does not follow the standard definition: it is lower than NDCG@1. To "
    "its last digit, it is the NDCG of the top three passages in reverse order (benchmarks/published.py), so "
    "the last column shows it. Values marked with * are the standard NDCG@3, derived from the card's other "
    "figures."
)


@dataclass(frozen=True)
class Report:
    """All results of a measurement."""

    dataset: Dataset
    runs: Sequence[Run]
    figures: Sequence[Mapping[str, float]]
    """Means over the queries by metric name, for each run."""
    changes: Sequence[Change]
    """Changes from the first run to each other run."""
    libraries: Mapping[str, str]
    """Versions of the libraries that computed the metrics."""
    impossible: Mapping[str, str] = field(default_factory=dict)
    """Reasons why contenders could not embed, by contender name."""
    speeds: Sequence[Speed] = ()
    """Results of the throughput benchmark. The chart shows the first one."""
    note: str = ""
    """Description of the weights."""


def as_data(report: Report) -> dict[str, Any]:
    """Return the report as JSON-serializable data. Metrics of the runs are between 0 and 1."""
    dataset = report.dataset
    return {
        "dataset": {
            "name": dataset.name,
            "source": dataset.source,
            "sha256": dataset.sha256,
            "queries": len(dataset.queries),
            "passages": len(dataset.passages),
        },
        "libraries": dict(report.libraries),
        "runs": [
            {**run.describe(), "figures": dict(figures)}
            for run, figures in zip(report.runs, report.figures, strict=True)
        ],
        "changes": [asdict(change) for change in report.changes],
        "note": report.note,
        "not_possible": dict(report.impossible),
        "speeds": [asdict(speed) for speed in report.speeds],
        "published_percent": {
            "source": CARD,
            "figures": {
                model: dict(zip(_SHARED, row, strict=True)) for model, row in _published(dataset).items()
            },
        },
    }


def as_markdown(report: Report) -> str:
    """Return the report as Markdown."""
    parts = [
        f"# Retrieval quality: {report.dataset.name}",
        _conditions(report),
        *_summary(report),
        _figures(report),
        _DEFINITIONS,
        *_card(report),
        *(part for change in report.changes for part in _change(change)),
    ]
    return "\n\n".join(parts) + "\n"


def _published(dataset: Dataset) -> Mapping[str, Figures]:
    return PUBLISHED.get(dataset.name, {})


def _conditions(report: Report) -> str:
    dataset = report.dataset
    lines = [
        f"- {len(dataset.queries)} queries, {len(dataset.passages)} passages; {dataset.source}; "
        f"SHA-256 {dataset.sha256[:16]}",
        f"- figures computed with {_listed(report.libraries)}",
        *(f"- {_run(run)}" for run in report.runs),
    ]
    if report.note:
        lines.append(f"- weights: {report.note}")
    if len({run.source.weights_sha256 for run in report.runs}) > 1:
        lines.append("- the runs do **not** have the same weights")
    return "\n".join(lines)


def _summary(report: Report) -> list[str]:
    """Return a section with changes and speeds; nothing if there are no speeds and no failed contenders."""
    if not (report.speeds or report.impossible):
        return []
    overlap = ("top-10 overlap, mean, %", "top-10 overlap, worst query, %")
    head = ["run", *overlap, "cosine min", "cosine mean", _NDCG_CHANGE]
    changes = {change.run: change for change in report.changes}
    rows = [
        [run.label, *_changed(changes.get(run.label)), *(_rate(speed, run) for speed in report.speeds)]
        for run in report.runs
    ]
    blank = [""] * (len(head) + len(report.speeds) - 2)
    rows += [[name, "not possible", *blank] for name in report.impossible]
    table = _table([*head, *(f"tokens/s, {speed.checkpoint}" for speed in report.speeds)], rows)
    speeds = [
        f"- tokens/s, {speed.checkpoint}: speed with the checkpoint {speed.checkpoint} ({CORPUS} of short "
        f"and long texts; {speed.machine}), median and, in parentheses, maximum of the interleaved rounds"
        for speed in report.speeds
    ]
    terms = [
        f"- top-10 overlap: share of the ten best passages of {report.runs[0].label} that are also among the "
        "ten best of the run",
        f"- cosine: between the embeddings of {report.runs[0].label} and those of the run",
    ]
    if len(speeds) > 1:
        speeds.append("- speeds of different columns cannot be compared")
    reasons = [f"- {name} is not possible: {reason}" for name, reason in report.impossible.items()]
    return ["## Summary", table, "\n".join([*terms, *speeds, *reasons])]


def _changed(change: Change | None) -> list[str]:
    if change is None:
        return ["100.00", "100.00", "1", "1", "baseline"]
    difference, interval = _interval(change.differences["NDCG@10"])
    cosines = (change.cosine.cosine_min, change.cosine.cosine_mean)
    return [
        _percent(change.top10_overlap.mean),
        _percent(change.top10_overlap.min),
        *(f"{value:.5f}" for value in cosines),
        f"{difference} ({interval})",
    ]


def _rate(speed: Speed, run: Run) -> str:
    median, best = speed.median(run.timed_as), speed.best(run.timed_as)
    return "not timed" if median is None else f"{median:,.0f} ({best:,.0f})"


def _run(run: Run) -> str:
    facts = run.describe()
    source, cut = run.source, facts["truncated"]
    at = f" at {source.revision}" if source.revision else ""
    contender = CONTENDERS.get(run.timed_as)
    own = "its own weights instead of those of " if contender and contender.has_own_weights else ""
    return (
        f"**{run.label}**: {own}checkpoint `{source.repository}`{at}, SHA-256 {source.weights_sha256[:16]}; "
        f"{cut['queries']} queries and {cut['passages']} passages truncated at {run.max_tokens} tokens; "
        f"{_listed(facts['measured_with'])}"
    )


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(version if name == "cpu" else f"{name} {version}" for name, version in versions.items())


def _figures(report: Report) -> str:
    names = [name for name in report.figures[0] if name != REVERSED]
    return _table(["run", *names], _rows(report, names))


def _rows(report: Report, names: Sequence[str]) -> list[list[str]]:
    return [
        [run.label, *(_percent(figures[name]) for name in names)]
        for run, figures in zip(report.runs, report.figures, strict=True)
    ]


def _card(report: Report) -> list[str]:
    """Return a section that compares with the model card; nothing if the card lacks the dataset."""
    published = _published(report.dataset)
    if not published:
        return []
    odd = report.dataset.name == AUTORAG
    names = [*_SHARED, REVERSED] if odd else list(_SHARED)
    cards = [[f"{model} (card)", *_card_cells(row, odd=odd)] for model, row in published.items()]
    note = [_AUTORAG_NOTE] if odd else []
    return [
        "## Comparison with the model card",
        f"The rows marked (card) are the percentages published at {CARD}.",
        _table(["model", *names], [*_rows(report, names), *cards]),
        *note,
    ]


def _card_cells(row: Figures, *, odd: bool) -> list[str]:
    cells = [f"{value:.2f}" for value in row]
    if not odd:
        return cells
    ndcg_1, f1_1, ndcg_3, f1_3 = cells
    return [ndcg_1, f1_1, f"{standard_autorag_ndcg_3(row):.2f}*", f1_3, ndcg_3]


def _change(change: Change) -> list[str]:
    overlap, correlation = change.top10_overlap, change.rank_correlation
    differences = [[name, *_interval(found)] for name, found in change.differences.items()]
    by_length = {"all": change.cosine, **change.cosine_by_length}
    cosines = [
        [
            bucket,
            str(found.texts),
            *(f"{value:.6f}" for value in (found.cosine_min, found.cosine_p1, found.cosine_mean)),
        ]
        for bucket, found in by_length.items()
    ]
    return [
        f"## {change.run} compared with {change.baseline}",
        f"- top-10 overlap (share of the ten best passages of {change.baseline} that are also among the ten "
        f"best of {change.run}): {_percent(overlap.mean)} % on average, {_percent(overlap.min)} % for the "
        "worst query\n"
        f"- Spearman's rank correlation over all passages: {correlation.mean:.6f} on average, "
        f"{correlation.min:.6f} for the worst query",
        _table(["figure", "difference, points", "95 % interval"], differences),
        f"Cosine between the embeddings of {change.baseline} and of {change.run}, by the number of tokens "
        "per text:",
        _table(["tokens", "texts", "min", "1st percentile", "mean"], cosines),
    ]


def _interval(found: Difference) -> tuple[str, str]:
    low, high = 100 * found.low, 100 * found.high
    return f"{100 * found.difference:+.2f}", f"{low:+.2f} to {high:+.2f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns: the first one left-aligned, the others right-aligned."""
    cells = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [_line(row, widths) for row in cells]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], _line(rule, widths), *lines[1:]])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(row, widths, strict=True)
    cells = [f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in rest)]
    return f"| {' | '.join(cells)} |"
