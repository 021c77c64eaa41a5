"""The documentation: it builds, loads nothing from elsewhere, shows its formulas, and its code runs."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tiny_policy
from filelock import FileLock
from helpers import ROOT, shared_folder
from test_layering import LAYERS, PACKAGE

from trl_selfdistill.cli.algorithms import COLUMNS, row, table

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What can run as root, in a fresh profile, and asks the network for nothing.
FLAGS = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
FLAGS += ["disable-component-update", "disable-sync", "enable-logging=stderr"]
RAW_FORMULA = re.compile(r"\\[a-zA-Z()\[\]]|\$")
LOADS = {"link": "href", **dict.fromkeys(("script", "img", "iframe", "source", "video", "audio"), "src")}


class Page(HTMLParser):
    """What a page loads, and its text outside code."""

    SILENT = ("code", "pre", "script", "style", "title", "annotation")  # KaTeX keeps the source in an annotation

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text: list[str] = []
        self._silent = 0
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        address = dict(attrs).get(LOADS.get(tag, ""))
        if address and not (tag == "link" and dict(attrs).get("rel") in ("next", "prev")):
            self.loaded.append(address)
        self._silent += tag in self.SILENT

    def handle_endtag(self, tag):
        self._silent -= tag in self.SILENT

    def handle_data(self, data):
        if not self._silent:
            self.text.append(data)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The built documentation. A warning of mkdocs is an error."""
    folder = shared_folder(tmp_path_factory) / "site"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site):
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]  # it is for servers, which know the root
    assert len(pages) >= len(list((ROOT / "docs").glob("*.md")))
    for page in pages:
        for address in Page(page.read_text()).loaded:
            assert (page.parent / address.partition("?")[0]).is_file(), f"{page.name} loads {address}"
    for sheet in site.rglob("*.css"):
        assert "@import" not in sheet.read_text()
        for address in re.findall(r"url\(\s*[\"']?([^)\"']+)", sheet.read_text()):
            assert address.startswith("data:") or (sheet.parent / address).is_file(), f"{sheet.name} loads {address}"


def test_what_loads_from_elsewhere_is_seen():
    remote = '<link rel="stylesheet" href="https://a/b.css"><script src="//a/b.js"></script><img src="c.png"><p>d</p>'
    assert Page(remote).loaded == ["https://a/b.css", "//a/b.js", "c.png"]


def in_browser(page: Path, profile: Path) -> str:
    """The page's document after its scripts have run. They must leave the console empty."""
    command = [
        str(CHROMIUM),
        *(f"--{flag}" for flag in (*FLAGS, f"user-data-dir={profile}", "dump-dom")),
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_formulas_are_shown_in_a_browser(site, tmp_path):
    with_formulas = {page: count for page in site.glob("*.html") if (count := page.read_text().count("arithmatex"))}
    assert {"rlrt", "opsd", "antisd", "teachers"} <= {page.stem for page in with_formulas}
    for page, count in with_formulas.items():
        shown = in_browser(page, tmp_path / page.stem)
        assert shown.count('class="katex"') == count, page.name
        assert "katex-error" not in shown
        raw = [text for text in Page(shown).text if RAW_FORMULA.search(text)]
        assert not raw, f"{page.name} shows the source of a formula: {raw}"


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_other_pages_leave_the_console_empty_and_have_no_raw_formula(site, tmp_path):
    pages = [page for page in site.glob("*.html") if page.name != "404.html" and "arithmatex" not in page.read_text()]
    assert len(pages) > 5
    for page in pages:
        raw = [text for text in Page(in_browser(page, tmp_path / page.stem)).text if r"\(" in text or "$$" in text]
        assert not raw, page.name


def test_a_raw_formula_is_seen():
    for raw in (r"<p>\(x\)</p>", "<p>$$ x $$</p>", r"<p>a \frac12 b</p>"):
        assert any(RAW_FORMULA.search(text) for text in Page(raw).text)
    assert not any(RAW_FORMULA.search(text) for text in Page(r"<p>a</p><code>\frac $x</code>").text)


def test_the_architecture_page_has_the_rules_of_the_layering_test():
    rows = re.findall(r"^\| `(\w+)/` \|[^|]+\|([^|]+)\|([^|]+)\|", (ROOT / "docs/architecture.md").read_text(), re.M)
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/*.py")}
    assert {name for name, _, _ in rows} == folders | (LAYERS.keys() & {"cli"})
    for name, ours, theirs in rows:
        told = [{"*"} if cell.strip() == "anything" else set(re.findall(r"`(\w+)`", cell)) for cell in (ours, theirs)]
        assert told == list(LAYERS[name]), name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_a_page_names_is_there(page):
    text = page.read_text()
    for line in re.findall(r"^from trl_selfdistill.*import .*$", text, re.M):
        exec(line, {})
    for name in re.findall(r"(?<![\w/-])(?:examples|recipes|docs|tests|benchmarks|trl_selfdistill)/[\w/]+\.\w+", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(("page", "pages"), [("README.md", "docs/"), ("docs/choosing.md", "")])
def test_the_table_of_algorithms_is_the_one_that_the_classes_make(page, pages):
    marked = r"<!-- trl-selfdistill algorithms( --pages docs/)? -->\n(.*?)\n<!-- end -->"
    ((_, found),) = re.findall(marked, (ROOT / page).read_text(), re.S)
    assert found == table(pages), f"run: trl-selfdistill algorithms --pages {pages!r}"


def test_what_the_table_says_of_three_algorithms():
    facts = {command: dict(zip(COLUMNS, row(command), strict=True)) for command in ("opsd", "rlrt", "rlcsd")}
    assert [facts[name]["kind"] for name in facts] == ["divergence", "token signal", "token signal"]
    assert [facts[name]["needs"] for name in facts] == ["gold", "reward, group", "reward, group"]
    assert facts["rlcsd"]["views"] == "`right`, `wrong_1` to `wrong_4`"
    assert facts["opsd"]["teacher"] == '`"base"`'
    assert all(facts[name]["differs from the paper"] for name in facts)


@pytest.mark.slow
@pytest.mark.apart
def test_the_custom_loop_learns(tiny, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/custom_loop.md").read_text(), re.M | re.S)
    monkeypatch.setattr(tiny_policy, "tiny_policy", lambda: tiny)  # the one that the fixture keeps: half a minute less
    names: dict[str, Any] = {"__name__": "custom_loop"}
    exec(code, names)
    assert names["before"] < 0.3
    assert names["after"] > 0.6
