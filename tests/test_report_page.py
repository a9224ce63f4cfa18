"""The page of a report: no name or tag becomes HTML, and a browser shows it as meant."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import BROWSER, Browser
from cli_here import CliHere
from report_clips import FRAMES, mattes, pictures, write_video
from test_hostile_text import assert_clean

from vidmatte.errors import printable
from vidmatte.evaluation.report.charts import clock
from vidmatte.evaluation.report.html import Html, fill

INJECTION = "<img src=x onerror=alert(1)>\"'&{name}\u202eevil"
TAG = '"></td><script>alert(2)</script><a href="javascript:alert(3)">x</a>\x1b[2J\u2028'
LOST, GONE = 20, 9
VOID = {"meta", "img", "path"}  # `path` closes itself in our SVG


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an input and an output of hostile names and tags, and something to report."""
    folder = tmp_path_factory.mktemp("page")
    tags = {"title": TAG, "comment": "c" * 5000, "artist": TAG, TAG.replace("\x1b", ""): TAG}
    write_video(folder / f"{INJECTION}s.mkv", pictures(cut_at=12), tags=tags)
    changed = mattes(lambda index, matte: matte * (index != GONE))
    write_video(folder / f"{INJECTION}m.mkv", changed, tags=tags,
                time=lambda index: None if index == LOST else index)  # fmt: skip
    return folder


@pytest.fixture
def page(hostile: Path, cli_here: CliHere, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(hostile)
    done = cli_here("report", f"{INJECTION}s.mkv", f"{INJECTION}m.mkv", "--overwrite",
                    "--fail-if", "lost-frames>0")  # fmt: skip
    assert done.code == 1
    assert_clean(done.out, done.err)
    path = hostile / f"{INJECTION}m.mkv.report.html"
    yield path
    path.unlink()


class Elements(HTMLParser):
    """Every element with its attributes; fails where one is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_nothing_of_a_name_or_a_tag_becomes_html(page: Path) -> None:
    text = page.read_text("utf-8")
    assert_clean(text)
    elements = Elements(text)
    kinds = {tag for tag, _ in elements.found}
    assert not kinds & {"script", "iframe", "object", "embed", "link", "base", "form", "video"}
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on")], attributes
        if tag == "img":
            source = attributes["src"]
            assert source is not None
            head, _, data = source.partition(",")
            assert head == "data:image/jpeg;base64"
            assert b64decode(data, validate=True)[:3] == b"\xff\xd8\xff"
        if tag == "a":
            assert re.fullmatch(r"#moment-\d+", attributes["href"] or "")
    shown = "".join(elements.texts)
    assert printable(f"{INJECTION}m.mkv") in shown
    assert printable(TAG) in shown
    assert "c" * 300 not in shown


def test_the_page_forbids_whatever_it_does_not_need(page: Path) -> None:
    text = page.read_text("utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src &#x27;none&#x27;; img-src data:; ")
    assert text.index("Content-Security-Policy") < text.index("<style>")
    assert not re.search(r"https?:|url\(|@import|file:", text)


def test_names_in_the_document_are_escaped(
    hostile: Path, cli_here: CliHere, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(hostile)
    done = cli_here("report", f"{INJECTION}s.mkv", f"{INJECTION}m.mkv", "--json",
                    "--html", tmp_path / "p.html")  # fmt: skip
    document = json.loads(done.out)
    assert_clean(*strings_in(document))
    assert document["input"]["name"] == printable(f"{INJECTION}s.mkv")
    assert document["timing"]["lost"] == {"count": 1, "first_s": [LOST / 25]}


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)


def test_what_is_filled_in_is_escaped_unless_it_is_html() -> None:
    assert fill("<b>{x}</b>", x="<&\"'\u202e") == "<b>&lt;&amp;&quot;&#x27;\\u202e</b>"
    assert fill("{x}", x=Html("<i>")) == "<i>"
    assert fill("{x}", x=Html("<i>") + Html("<b>")) == "&lt;i&gt;&lt;b&gt;"  # no longer Html
    assert fill("{x}", x="{y}") == "{y}"


@pytest.mark.parametrize(("time_s", "text"), [
    (0.0, "0:00.00"), (59.999, "1:00.00"), (61.5, "1:01.50"), (3725.04, "1:02:05.04"),
    (-0.5, "-0:00.50"),
])  # fmt: skip
def test_times_are_told_as_clocks_do(time_s: float, text: str) -> None:
    assert clock(time_s) == text


# In a browser -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if BROWSER is None:
        pytest.skip("chromium is not installed")
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


def test_a_browser_shows_the_page_and_asks_for_nothing_else(page: Path, browser: Browser) -> None:
    browser.size(1280, 900)
    browser.open(page)
    assert browser.ask("document.title") == printable(f"Matte report: {INJECTION}m.mkv")
    assert printable(TAG) in browser.ask("document.body.textContent")
    decoded = browser.ask(
        "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"
    )
    moments = browser.ask("document.querySelectorAll('.moment').length")
    assert moments >= 3
    assert len(decoded) >= 3 * moments
    assert set(decoded) == {320}
    asked = {
        r["request"]["url"].partition(",")[0] for r in browser.told("Network.requestWillBeSent")
    }
    assert asked == {page.as_uri(), "data:image/jpeg;base64"}
    for event in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled",
                  "Page.javascriptDialogOpening", "Network.loadingFailed"):  # fmt: skip
        assert browser.told(event) == [], event


def test_the_policy_holds_in_a_browser(page: Path, browser: Browser) -> None:
    """What an injection would do is refused, and these tests would see it."""
    attack = "<script>alert(1)</script><img src=http://127.0.0.1:9/x><img src=x onerror=alert(2)>"
    broken = page.with_name("attack.html")
    broken.write_text(page.read_text("utf-8").replace("<main>", f"<main>{attack}"), "utf-8")
    browser.open(broken)
    assert len(browser.told("Log.entryAdded")) >= 3
    assert browser.told("Page.javascriptDialogOpening") == []
    broken.unlink()


def test_numbers_lead_to_their_moments(page: Path, browser: Browser) -> None:
    browser.size(1280, 900)
    browser.open(page)
    browser.ask("document.querySelector('.pins a').click()")
    top = browser.ask("document.querySelector('.moment:target').getBoundingClientRect().top")
    assert -1 <= top < 900
    first = browser.ask("document.querySelector('#moment-1 .code').textContent")
    assert f"picture {GONE} · 00:00:00:{GONE:02d}" in first
    box = browser.ask("JSON.stringify(document.querySelector('#moment-1 .box')"
                      ".getBoundingClientRect())")  # fmt: skip
    assert json.loads(box)["width"] > 40  # the disc that is gone


@pytest.mark.parametrize("width", [360, 820, 1600])
def test_the_page_fits_every_window(width: int, page: Path, browser: Browser) -> None:
    browser.size(width, 800)
    browser.open(page)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(
        "[...document.querySelectorAll('.card, figure, .plot')].every(e => e.offsetWidth > 100)"
    )


def test_charts_are_drawn_in_both_schemes(page: Path, browser: Browser) -> None:
    browser.size(1280, 900)
    colours = []
    for scheme in ("light", "dark"):
        browser.scheme(scheme)
        browser.open(page)
        heights = browser.ask(
            "[...document.querySelectorAll('.edge')].map(e => e.getBBox().height)"
        )
        assert len(heights) == 5
        assert max(heights) > 50
        assert browser.ask("document.querySelectorAll('.cut, .lost').length") >= 2
        colours.append(browser.ask("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]


def test_the_frames_are_told(page: Path, browser: Browser) -> None:
    browser.open(page)
    text = browser.ask("document.body.innerText")
    assert f"1 of {FRAMES} lost, first at 0.80 s" in text
    assert "lost-frames is 1 at 0.80 s (--fail-if lost-frames>0)" in text
    assert "Scene cuts" in text
