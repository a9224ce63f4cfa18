"""Write a report as one HTML page that needs nothing else: no script, no file, no network."""

from __future__ import annotations

from base64 import b64encode
from importlib.metadata import version
from typing import TYPE_CHECKING

from vidmatte.evaluation.report.charts import charts_of, clock
from vidmatte.evaluation.report.checks import Check, Grade, checks_of, headline
from vidmatte.evaluation.report.html import Html, fill, joined
from vidmatte.evaluation.report.moments import reasons_of
from vidmatte.evaluation.report.style import STYLE

if TYPE_CHECKING:
    from vidmatte.evaluation.report.analysis import Report
    from vidmatte.evaluation.report.facts import Facts
    from vidmatte.evaluation.report.measures import Box
    from vidmatte.evaluation.report.moments import Moment
    from vidmatte.evaluation.report.series import Times
    from vidmatte.evaluation.report.stills import Stills

POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
MARKS: dict[Grade, str] = {"good": "✓", "look": "!", "bad": "✕"}
SHOWN_TIMES = 40

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>Matte report: {name}</title>
<style>{style}</style>
</head>
<body>
<main>
<header><h1>Matte report</h1>
<p class="names"><b>{name}</b> against <b>{source}</b>{alpha}</p></header>
{verdict}
<h2>Over time</h2>
<p class="soft">px are those of a picture scaled to 1920 on its longer side. Numbers lead to the
most doubtful moments.</p>
{charts}
<h2>The most doubtful moments</h2>
<p class="soft">The worst first, each a little apart from the others in time. A frame shows the
largest part that appeared or vanished.</p>
{moments}
<h2>Files</h2>
{files}
{times}
<footer>Without the truth a report can tell what moves, jumps or is unsure, not what is steadily
wrong. Made by vidmatte {version} in {elapsed} s from {frames} pictures.</footer>
</main>
</body>
</html>
"""


def page_of(report: Report) -> str:
    """Return the page."""
    return fill(
        _PAGE,
        policy=POLICY,
        style=Html(STYLE),
        name=report.output.name,
        source=report.source.name,
        alpha=fill(", matte from <b>{name}</b>", name=report.alpha.name)
        if report.alpha
        else Html(""),
        verdict=_verdict(report),
        charts=charts_of(report),
        moments=_moments(report),
        files=_files(report),
        times=_times(report),
        version=version("vidmatte"),
        elapsed=f"{report.elapsed_s:.1f}",
        frames=report.rhythm.count,
    )


def _verdict(report: Report) -> Html:
    checks = checks_of(report)
    grades = {check.grade for check in checks}
    worst: Grade = "bad" if "bad" in grades else "look" if "look" in grades else "good"
    return fill(
        '<p class="headline {grade}"><span class="mark">{mark}</span>{text}</p>{limits}'
        '<div class="checks">{checks}</div>',
        grade=worst,
        mark=MARKS[worst],
        text=headline(checks),
        limits=_limits(report),
        checks=joined(_check(check) for check in checks),
    )


def _check(check: Check) -> Html:
    return fill(
        '<div class="card {grade}"><span class="mark" title="{grade}">{mark}</span><div>'
        "<h3>{title}</h3><p>{text}</p></div></div>",
        grade=check.grade,
        mark=MARKS[check.grade],
        title=check.title,
        text=check.text,
    )


def _limits(report: Report) -> Html:
    if not report.limits:
        return Html("")
    if not report.passed:
        return fill(
            '<div class="card limits held">No limit is passed: {limits}</div>',
            limits=", ".join(map(str, report.limits)),
        )
    return fill(
        '<div class="card limits"><b>Fails</b><ul>{lines}</ul></div>',
        lines=joined(fill("<li>{line}</li>", line=line) for line in report.passed),
    )


def _moments(report: Report) -> Html:
    if not report.moments:
        return Html('<p class="card">No picture has a matte to look at.</p>')
    return joined(_moment(rank, moment, report) for rank, moment in enumerate(report.moments, 1))


def _moment(rank: int, moment: Moment[Stills], report: Report) -> Html:
    stills = moment.still
    size = stills.width, stills.height
    box = moment.measures.blob_box
    figures = [_figure("Source", stills.source, size)]
    if stills.before is not None:
        figures.append(_figure("Matte, one picture before", stills.before, size))
    figures.append(_figure("Matte", stills.matte, size, box))
    figures.append(_figure(COMPOSITES[report.holds], stills.composite, size))
    return fill(
        '<article class="card moment" id="moment-{rank}"><div class="head">'
        '<span class="rank">{rank}</span><span class="when">{at}</span>'
        '<span class="code">picture {index}{code}</span><span class="why">{why}</span></div>'
        '<div class="stills{tall}">{figures}</div></article>',
        rank=rank,
        at=clock(moment.time_s),
        index=moment.index,
        code=_code(moment.index, report),
        why=joined(fill("<span>{why}</span>", why=w) for w in reasons_of(moment.measures)),
        tall=" tall" if stills.height > stills.width else "",
        figures=joined(figures),
    )


COMPOSITES = {
    "alpha": "Output over a checkerboard",
    "matte": "Source over a checkerboard",
    "opaque": "Output",
}


def _figure(caption: str, data: bytes, size: tuple[int, int], box: Box | None = None) -> Html:
    frame = Html("")
    if box is not None:
        sides = {
            "left": box.left,
            "top": box.top,
            "width": box.right - box.left,
            "height": box.bottom - box.top,
        }
        where = ";".join(f"{side}:{100 * share:.2f}%" for side, share in sides.items())
        frame = fill('<span class="box" style="{where}"></span>', where=where)
    return fill(
        '<figure><div><img src="data:image/jpeg;base64,{data}" width="{width}" height="{height}" '
        'alt="{caption}">{frame}</div><figcaption>{caption}</figcaption></figure>',
        data=Html(b64encode(data).decode("ascii")),
        width=size[0],
        height=size[1],
        caption=caption,
        frame=frame,
    )


def _code(index: int, report: Report) -> str:
    """The non-drop time code, counted in pictures from 0, where the rate is constant."""
    rate = round(report.rhythm.rate)
    if not (report.has_times and report.rhythm.is_constant and rate):
        return ""
    seconds, picture = divmod(index, rate)
    hours, minutes = divmod(seconds // 60, 60)
    return f" · {hours:02d}:{minutes:02d}:{seconds % 60:02d}:{picture:02d}"


def _files(report: Report) -> Html:
    known = [("Input", report.source), ("Output", report.output), ("Matte", report.alpha)]
    cards = [_file(role, facts) for role, facts in known if facts is not None]
    return fill('<div class="files">{cards}</div>', cards=joined(cards))


def _file(role: str, facts: Facts) -> Html:
    tags = Html("")
    if facts.tags:
        tags = fill(
            "<details><summary>{count} tags</summary><table>{rows}</table></details>",
            count=len(facts.tags),
            rows=_rows(facts.tags),
        )
    return fill(
        '<section class="card"><h3>{role}: {name}</h3><table>{rows}</table>{tags}</section>',
        role=role,
        name=facts.name,
        rows=_rows(facts.rows),
        tags=tags,
    )


def _rows(rows: list[tuple[str, str]]) -> Html:
    return joined(
        fill("<tr><th>{name}</th><td>{value}</td></tr>", name=name, value=value)
        for name, value in rows
    )


def _times(report: Report) -> Html:
    """List the pictures that are lost or extra, and the cuts."""
    found = report.comparison
    named = (("Lost", found.lost), ("Extra", found.extra), ("Scene cuts", report.cuts))
    rows = [(name, _listed(times)) for name, times in named if times.count]
    if not rows:
        return Html("")
    return fill('<section class="card times"><table>{rows}</table></section>', rows=_rows(rows))


def _listed(times: Times) -> str:
    shown = ", ".join(clock(t, 3) for t in times.first[:SHOWN_TIMES])
    more = times.count - min(times.count, SHOWN_TIMES)
    return f"{times.count}: {shown}" + (f" and {more} more" if more else "")
