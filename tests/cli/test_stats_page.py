"""`embcache stats --html`: the page that the real command writes, as a real browser has it."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from tests import browser
from tests.cli.commands import embcache, passages
from tests.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TITLE = "embcache: what was paid and what was saved"
ALONE = {"meta", "br", "line", "path", "img", "link"}
LOADS_OR_RUNS = {"src", "href", "style", "srcset", "data", "action", "xlink:href"}


class Read(HTMLParser):
    """What a document shows, and what it is made of."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.tables: list[list[list[str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag in ALONE:
            return
        self._open.append(tag)
        self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"th", "td"}:
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ALONE:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data
        if self._open and self._open[-1] in {"th", "td"}:
            self.tables[-1][-1][-1] += data


@pytest.fixture
def elsewhere() -> Iterator[Upstream]:
    """A server that a page must never ask for anything."""
    with Upstream() as upstream:
        yield upstream


def fill(folder: Path, *texts: str, **options: str) -> None:
    lines = "".join(text + "\n" for text in texts).encode()
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    assert embcache(folder, "embed", "-", *given, stdin=lines).code == 0


def written(folder: Path, *options: str) -> Path:
    """The page that the command writes; nothing is printed."""
    run = embcache(folder, "stats", "--html", "page.html", *options)
    assert (run.code, run.out, run.err) == (0, b"", "")
    return folder / "page.html"


def figures(folder: Path, *options: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(embcache(folder, "stats", "--json", *options).out)
    return told


def hostile(elsewhere: Upstream) -> tuple[str, str]:
    """Names that are markup."""
    return (
        f"<img src=\"http://127.0.0.1:{elsewhere.port}/\" onerror='document.title=1'>&lt;",
        '</title></td><script>document.title="ran"</script>',
    )


def test_what_the_page_shows(folder: Path, elsewhere: Upstream) -> None:
    """The page shows the figures of `--json`, and names are text in it, whatever they look like."""
    model, project = hostile(elsewhere)
    fill(folder, *passages(9), *passages(2), model=model)
    fill(folder, *passages(7), *passages(3, start=20), model=model, project=project)
    fill(folder, *passages(1), model="plain")
    fill(folder, *passages(1), model="plain")
    told = figures(folder)
    page = written(folder)

    read = Read(browser.dom(page))

    assert read.texts["title"][0] == TITLE
    assert not read.elements & {"script", "img", "link", "iframe", "object", "use", "image"}
    assert not {name for name in read.attributes if name in LOADS_OR_RUNS or name.startswith("on")}
    assert elsewhere.connections == 0
    tiles = read.texts["section"]
    asked = told["hits"] + told["misses"] + told["duplicates"]
    apportioned = told["saved_tokens"] - told["saved_exact"]
    assert told["saved_exact"] > 0
    assert apportioned > 0
    assert [re.findall(r"\d[\d,.]*\d%?|\d", tile) for tile in tiles] == [
        [str(told["billed_tokens"]), str(told["requests"])],
        [str(told["saved_tokens"]), str(told["saved_exact"]), str(apportioned)],
        ["0"],
        [f"{told['hits'] / asked:.1%}", str(told["hits"]), str(asked)],
        [str(told["entries"]), f"{told['bytes_on_disk'] / 1000:.1f}"],
    ]
    by = {rows[0][0]: rows[1:] for rows in read.tables}
    assert list(by) == ["day", "model", "project"]
    for name, rows in by.items():
        parts = told[f"by_{name}"]
        assert [row[0] for row in rows] == [part or "(none)" for part in parts]
        assert [row[-2] for row in rows] == [f"{part['saved_tokens']:,}" for part in parts.values()]
        assert [row[-4] for row in rows] == [f"{part['billed_tokens']:,}" for part in parts.values()]
    for day, part in told["by_day"].items():
        at = date.fromisoformat(day)
        named = f"{at.day} {at:%B %Y}: "
        shown = [title.removeprefix(named) for title in read.texts["title"] if title.startswith(named)]
        assert shown == [
            f"{part['hits']} hits, {part['misses']} misses",
            f"{part['saved_tokens']} saved, {part['billed_tokens']} billed",
        ]


@pytest.mark.parametrize("with_policy", [True, False])
def test_policy(folder: Path, elsewhere: Upstream, with_policy: bool) -> None:
    """Even where markup got into the page, its policy has the browser load nothing and run nothing."""
    page = written(folder)
    url = f"http://127.0.0.1:{elsewhere.port}/"
    intruder = (
        f'<img src="{url}"><link rel="stylesheet" href="{url}"><iframe src="{url}"></iframe>'
        '<script>document.title = "ran"</script><p style="color: red">'
    )
    document = page.read_text().replace("<footer>", intruder + "<footer>")
    assert intruder in document
    if not with_policy:
        document, taken = re.subn(r"<meta http-equiv=[^>]*>", "", document)
        assert taken == 1
    page.write_text(document)
    ran = Read(browser.dom(page)).texts["title"][0] == "ran"
    # Without it all of this happens: the look itself is able to see it.
    assert (len(elsewhere.requests) > 2, ran) == (not with_policy, not with_policy)
    assert with_policy == (elsewhere.requests == [])


def test_light_and_dark(folder: Path) -> None:
    """The page has its style, and is light or dark as its reader wants it."""
    page = written(folder)
    colours: dict[str, str] = {}
    for scheme in browser.SCHEMES:
        browser.picture(page, folder / "seen.png", size=(400, 300), scheme=scheme)
        colours[scheme] = browser.corner(folder / "seen.png")
    assert colours == {"light": "#ffffff", "dark": "#161615"}


def test_nothing_yet(folder: Path) -> None:
    """Of a cache that is not there the page shows noughts, for the last thirty days, and makes none."""
    days = {datetime.now(UTC).date()}
    page = written(folder)
    days.add(datetime.now(UTC).date())  # it may be midnight
    document = page.read_text()
    assert list(folder.iterdir()) == [page]
    last = re.findall(r"<title>([^<]*): 0 hits, 0 misses</title>", document)[-1]
    assert last in {f"{day.day} {day:%B %Y}" for day in days}
    assert document.count(": 0 hits, 0 misses</title>") == 30
    assert "<table>" not in document


def test_limits_are_told(folder: Path) -> None:
    """A page of a part says of which, and leaves out what that part cannot have."""
    fill(folder, *passages(2), model="m", project="<p>")
    document = written(folder, "--project", "<p>", "--model", "m").read_text()
    assert "<p>Only model m, project &lt;p&gt;</p>" in document
    assert "In the cache" not in document
    assert "Only" not in written(folder).read_text()


def test_page_and_json(folder: Path) -> None:
    """With `--json` as well, both are given."""
    run = embcache(folder, "stats", "--html", "page.html", "--json")
    assert (run.code, run.err, json.loads(run.out)["version"]) == (0, "", 1)
    assert (folder / "page.html").exists()


@pytest.mark.parametrize("name", ["nowhere/page.html", "here"])
def test_no_place(folder: Path, name: str) -> None:
    """A page that cannot be put where it is wanted is one line that names it."""
    (folder / "here").mkdir()
    run = embcache(folder, "stats", "--html", name)
    assert run.code in (1, 2)
    assert run.out == b""
    assert len(run.lines) == 1
    assert name in run.err
    assert list(folder.iterdir()) == [folder / "here"]


def test_half_a_page_is_none(folder: Path) -> None:
    """Where the page cannot be written to its end, the one that was there stays, and nothing else does."""
    (folder / "page.html").write_text("the page of yesterday")
    run = embcache(folder, "stats", "--html", "page.html", first="ulimit -f 4")
    assert (run.code, len(run.lines)) == (1, 1)
    assert (folder / "page.html").read_text() == "the page of yesterday"
    assert list(folder.iterdir()) == [folder / "page.html"]
