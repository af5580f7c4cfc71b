"""A report as one page for a browser: everything is in the file, and nothing is fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template

from ..version import __version__
from .report import Report

_MEGABYTE = 1e6


def report_page(report: Report, title: str) -> str:
    """Return a report as HTML, under a title."""
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        summary=escape(_summary(report)),
        bytes=_bytes(report),
        facts="\n".join(
            f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for label, value in _facts(report)
        ),
        frequency=_frequency(report),
        neighbours=_neighbours(report),
        made="\n".join(f"<tr><th>{escape(label)}</th><td>{escape(value)}</td></tr>" for label, value in _made(report)),
        options=escape(_options(report)),
        version=__version__,
    )


def _options(report: Report) -> str:
    """Return what describes the tables as JSON, a list of numbers in a line."""
    text = json.dumps([table.options for table in report.tables], indent=1, ensure_ascii=False)
    return re.sub(r"\[[\s\d.,-]+\]", lambda found: " ".join(found[0].split()), text)


def _summary(report: Report) -> str:
    tables = "The embedding table takes" if len(report.tables) == 1 else "The compact tables take"
    return (
        f"{tables} {_size(report.compact_bytes)} instead of {_size(report.dense_bytes)}: {report.ratio:.0f} times "
        f"less, {report.bits_per_weight:.2f} bits a value, everything counted."
    )


def _size(count: float) -> str:
    """Say a number of bytes with three figures, as 46.9 MB."""
    for unit, name in ((1e9, "GB"), (_MEGABYTE, "MB"), (1e3, "KB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"


def _bytes(report: Report) -> str:
    """Return a bar of the model's bytes before and after, and a key."""
    before = (report.dense_model_bytes - report.dense_bytes, report.dense_bytes)
    after = (report.model_bytes - report.compact_bytes, report.compact_bytes)
    bars = []
    for label, parts in (("before", before), ("after", after)):
        # The longest bar leaves room for the words behind it.
        widths = [f"{72 * part / max(sum(before), sum(after)):.2f}%" for part in parts]
        bars.append(
            f'<div class="bar"><span>{label}</span><div><i class="of-rest" style="width:{widths[0]}"></i>'
            f'<i class="of-table" style="width:{widths[1]}"></i><em>{_size(sum(parts))}</em></div></div>'
        )
    rest = _size(after[0]) if before[0] == after[0] else f"{_size(before[0])} → {_size(after[0])}"
    key = (
        f'<p class="quiet"><span class="key of-rest"></span>everything else {rest} &emsp; '
        f'<span class="key of-table"></span>table {_size(before[1])} → {_size(after[1])}</p>'
    )
    return "<h2>The whole model</h2>\n" + "\n".join(bars) + "\n" + key


def _facts(report: Report) -> Iterable[tuple[str, str]]:
    yield "times smaller", f"{report.ratio:.1f}×"
    yield "of the floats gone", f"{report.parameter_reduction:.2f} %"
    if report.mean_cosine is not None:
        yield "mean cosine of the rows", f"{report.mean_cosine:.3f}"
        yield f"relative error; Shannon bound {report.shannon_bound:.3f}", f"{report.relative_mse:.3f}"


def _frequency(report: Report) -> str:
    """Return where the error lies, or nothing where that is not known."""
    if not report.bands:
        return ""
    rows = []
    for band in report.bands:
        rows.append(
            f"<tr><td>{band.first:,} to {band.last:,}</td>"
            f'<td class="number">{band.read:.0%}</td><td class="number">{band.felt:.0%}</td>'
            f'<td><span class="meter"><i style="width:{max(0.0, band.mean_cosine):.0%}"></i></span> '
            f"{band.mean_cosine:.2f}</td></tr>"
        )
    numbers = "<th class=number>read</th><th class=number>error</th>"
    head = f"<tr><th>tokens, by frequency</th>{numbers}<th>mean cosine</th></tr>"
    words = "How much of all text these tokens are, and how much of the error that text meets is theirs."
    return (
        f'<h2>Where the error lies</h2>\n<p class="quiet">{words}</p>\n<div class="scroll"><table>\n{head}\n'
        + "\n".join(rows)
        + "\n</table></div>"
    )


def _neighbours(report: Report) -> str:
    """Return words with their nearest tokens before and after, or nothing where no words are known."""
    if not report.neighbours:
        return ""
    rows = []
    for one in report.neighbours:
        before, after = (
            ", ".join(
                f'<span class="same">{escape(token)}</span>' if token in other else escape(token) for token in tokens
            )
            for tokens, other in ((one.before, one.after), (one.after, one.before))
        )
        rows.append(f"<tr><td><b>{escape(one.token)}</b></td><td>{before}</td><td>{after}</td></tr>")
    kept = sum(one.kept for one in report.neighbours)
    every = sum(len(one.before) for one in report.neighbours)
    words = (
        f"The nearest tokens by cosine, of frequent words and of rarer ones. {kept} of {every} are still there, marked."
    )
    return (
        f'<h2>Nearest tokens</h2>\n<p class="quiet">{words}</p>\n<div class="scroll"><table>\n'
        "<tr><th>word</th><th>dense</th><th>compact</th></tr>\n" + "\n".join(rows) + "\n</table></div>"
    )


def _made(report: Report) -> Iterable[tuple[str, str]]:
    yield "method", report.method
    for table in report.tables:
        yield f"{table.table} table", f"{table.rows:,} × {table.width:,}, {table.private_rows:,} rows kept exactly"
    if report.evidence is not None:
        yield "fitted with", report.evidence
    if report.calibration is not None:
        yield "calibrated", report.calibration_in_words()
    yield "code beside it", f"{_size(report.code_bytes)} in {report.code_files} files"
    for name, size in report.other_tables.items():
        yield "still dense", f"{name}, {_size(size)}"
