"""A server's status as one HTML page that needs nothing else: no script, no font, no address."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape

from dlrm_factory.config.sizes import format_bytes
from dlrm_factory.monitoring.families import BATCH_SECONDS, SCORES
from dlrm_factory.tools.monitoring.status import (
    DRIFT_ALARM,
    DRIFT_WARNING,
    MIN_DRIFT_SAMPLES,
    DriftStatus,
    Status,
    VersionStatus,
    worst_features,
)
from dlrm_factory.tools.monitoring.words import age, milliseconds, rate

__all__ = ["status_page"]

_SHOWN_FEATURES = 40
_STYLE = """
:root{color-scheme:light dark;--back:#f6f7f9;--card:#fff;--ink:#1b2330;--soft:#667085;--line:#e3e7ee;--blue:#3b6fd8;
--good:#1a8a4a;--warn:#b7791f;--bad:#c43d3d}
@media (prefers-color-scheme:dark){:root{--back:#11151c;--card:#1a202b;--ink:#e6eaf2;--soft:#93a0b5;--line:#2b3443;
--blue:#7aa2f0;--good:#4cc38a;--warn:#e0b050;--bad:#ef7a7a}}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);
font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px}
header{display:flex;flex-wrap:wrap;gap:6px 22px;align-items:baseline;margin-bottom:18px}
h1{font-size:22px;margin:0}h2{font-size:18px;margin:0}
h3{font-size:12px;margin:0 0 8px;color:var(--soft);font-weight:600}
.soft{color:var(--soft)}.good{color:var(--good)}.warn{color:var(--warn)}.bad{color:var(--bad)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin-bottom:18px}
section>div.head{display:flex;flex-wrap:wrap;gap:4px 14px;align-items:baseline;margin-bottom:14px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:14px 22px;margin-bottom:18px}
.tile b{display:block;font-size:22px;font-weight:650;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}
.parts{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:18px 30px}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:9px}
svg rect{fill:var(--blue)}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td{padding:2px 8px 2px 0;font-size:13px}td.bar{width:50%}
td.bar div{height:9px;border-radius:2px;background:currentColor}
td.number{text-align:right}
"""


def status_page(status: Status) -> str:
    """The page: one card a model version."""
    good = bool(status.models) and all(each.ok for each in status.models)
    state = '<span class="good">● serving</span>' if good else '<span class="bad">● needs a look</span>'
    when = f"{datetime.fromtimestamp(status.when):%Y-%m-%d %H:%M:%S}"
    cards = "".join(_card(each, status.when) for each in status.models)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>dlrm status</title><style>{_STYLE}</style></head><body><main>"
        f'<header><h1>{state}</h1><span>{escape(status.inference)}</span><span class="soft">up {age(status.up_s)}, pid '
        f"{status.pid}</span>"
        f'<span class="soft">{when}, rates over {status.interval_s:.0f} s</span></header>'
        f"{cards or '<section>no model is registered</section>'}</main></body></html>\n"
    )


def _card(found: VersionStatus, when: float) -> str:
    created = f"archive {age(when - found.archive_created)} old" if found.archive_created else ""
    head = (
        f"<h2>{escape(found.model)} {escape(found.version)}</h2>"
        f'<span class="soft">{"default" if found.default else ""}</span><span class="soft">{created}</span>'
    )
    parts = [
        _part(
            "time of a batch, all since the workers started", _bars(found.latency_counts, _latency_names())
        ),
        _part("scores", _bars(found.score_counts, [f"{bound:g}" for bound in SCORES.buckets])),
        _part("drift against training", _drift(found.drift)),
    ]
    return (
        f'<section><div class="head">{head}</div><div class="tiles">{_tiles(found, when)}</div>'
        f'<div class="parts">{"".join(parts)}</div></section>'
    )


def _tiles(found: VersionStatus, when: float) -> str:
    rates = found.rates
    engines = ", ".join(f"{count} {name}" for name, count in found.engines.items() if count) or "ready"
    missing = found.workers < found.wanted or not found.wanted
    tiles = [
        (f"{found.workers} of {found.wanted}", f"workers, {engines}", "bad" if missing else "good"),
        (rate(rates.requests), "requests/s", ""),
        (rate(rates.samples), "samples/s", ""),
        (rate(rates.errors), "errors/s", "bad" if rates.errors else ""),
        (str(found.waiting), "requests in the queue", "warn" if found.waiting > 10 else ""),
        (milliseconds(rates.p50_s), "p50 of a batch in a worker", ""),
        (milliseconds(rates.p99_s), "p99 of a batch in a worker", ""),
        (format_bytes(found.private_bytes), "memory of the workers' own", ""),
        (
            format_bytes(found.tables_resident_bytes),
            f"of {format_bytes(found.tables_bytes)} tables in memory",
            "",
        ),
        ("–" if found.mean_score is None else f"{found.mean_score:.4f}", "mean score", ""),
        (f"{found.requests:,}", f"requests in all, {found.errors:,} errors", ""),
        (str(found.goldens), "golden requests reproduced", ""),
    ]
    if found.labels is not None:
        for key, name in (("calibration", "calibration"), ("normalized_entropy", "normalized entropy")):
            value, joined = found.labels[key], found.labels["joined"]
            tiles.append(("–" if value is None else f"{value:.3f}", f"{name}, {joined:,} labels", ""))
    return "".join(
        f'<div class="tile"><b class="{kind}">{escape(value)}</b><span>{escape(text)}</span></div>'
        for value, text, kind in tiles
    )


def _part(title: str, content: str) -> str:
    return f"<div><h3>{escape(title)}</h3>{content}</div>"


def _latency_names() -> list[str]:
    return [f"{1000 * bound:g} ms" for bound in BATCH_SECONDS.buckets]


def _bars(counts: Sequence[float], names: Sequence[str]) -> str:
    """Histogram; ``names``: upper bound of each bucket but the last, which is above all of them."""
    most, total = max(counts, default=0), sum(counts)
    if not most:
        return '<span class="soft">none yet</span>'
    width, height = 340, 110
    step = width / len(counts)
    parts = []
    for i, count in enumerate(counts):
        tall = 80 * count / most
        name = f"up to {names[i]}" if i < len(names) else f"above {names[-1]}"
        parts.append(
            f'<rect x="{i * step + 1:.1f}" y="{85 - tall:.1f}" width="{step - 2:.1f}" height="{max(tall, 0.6):.1f}">'
            f"<title>{escape(name)}: {count:,.0f}, {count / total:.1%}</title></rect>"
        )
    for i in range(0, len(names), max(len(names) // 5, 1)):
        parts.append(f'<text x="{(i + 1) * step:.1f}" y="98" text-anchor="middle">{escape(names[i])}</text>')
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def _drift(drift: DriftStatus | None) -> str:
    if drift is None:
        return '<span class="soft">the archive has no reference: it was made without 1,000 held-out samples</span>'
    window = f"{drift.samples:,} samples in {age(drift.window_s)}"
    if not drift.enough:
        return f'<span class="soft">waits for {MIN_DRIFT_SAMPLES:,} samples; there are {window}</span>'
    shown = [("scores", drift.score), *worst_features(drift, _SHOWN_FEATURES)]
    rows = "".join(_drift_row(name, index) for name, index in shown)
    left = len(drift.features) - _SHOWN_FEATURES
    more = f'<span class="soft">and {left} features below these</span>' if left > 0 else ""
    return (
        f'<span class="soft">population stability index, {window}; over {DRIFT_WARNING:g} look, over {DRIFT_ALARM:g} '
        f"alarm</span><table>{rows}</table>{more}"
    )


def _drift_row(name: str, index: float) -> str:
    kind = "bad" if index > DRIFT_ALARM else "warn" if index > DRIFT_WARNING else "good"
    share = min(index / (2 * DRIFT_ALARM), 1)
    return (
        f'<tr><td>{escape(name)}</td><td class="bar {kind}"><div style="width:{max(share, 0.01):.1%}"></div></td>'
        f'<td class="number {kind}">{index:.3f}</td></tr>'
    )
