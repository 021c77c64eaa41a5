"""The report of a run: complete, escaped, small, and alive in a browser."""

import json
import random
import re
import sys
import time
from html.parser import HTMLParser

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_runs import made_row, made_run
from test_docs import CHROMIUM, Page

from trl_selfdistill.cli.main import main
from trl_selfdistill.record.report import page_of, write_report
from trl_selfdistill.record.report_data import Run, fitting, read_run, thousandths
from trl_selfdistill.record.report_stats import CELLS, StepStats, kind_of, scored_tokens


class Data(HTMLParser):
    """What is inside the `<script>` elements of a page, as a browser's parser cuts it, and how many there are."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script":
            self.scripts[-1] += data

    @property
    def json(self):
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("runs") / "run-a")


def test_the_page_is_whole_and_loads_nothing(run_folder, tmp_path):
    size = write_report([run_folder], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert len(page.encode()) == size < 200_000
    assert [address for address in Page(page).loaded if not address.startswith("data:")] == []
    assert "default-src 'none'" in page and "@import" not in page and "url(" not in page
    assert re.findall(r"https?://[^\"]*", page) == ["http://www.w3.org/2000/svg"]  # a name, which nobody asks for
    data = Data(page).json
    (run,) = data["runs"]
    table = pyarrow.parquet.read_table(run_folder / "token_signals/step_000002.parquet").to_pylist()
    step = run["steps"][1]
    assert step["step"] == 2 and len(step["rows"]) == len(table)
    for ours, row in zip(step["rows"], table, strict=True):
        assert [data["tokens"][i] for i in ours["tok"]] == row["tokens"]
        assert (None if ours["c"] is None else data["texts"][ours["c"]]) == row["context"]
        assert (None if ours["tp"] is None else data["texts"][ours["tp"]]) == row["teacher_prompt"]
        assert ours["u"] == thousandths(row["log_ratio"]) and ours["ok"] == row["correct"]
        if ours["d"] is not None:
            added = [a - row["row_advantage"] for a in row["advantage"]]
            assert [d / 1000 for d in ours["d"]] == pytest.approx(added, abs=6e-4)
    assert [line["step"] for line in run["history"]] == [1, 2, 3]
    assert data["scales"].keys() == {"s", "u", "hs", "ht", "w", "d"} and 0.2 < data["scales"]["w"] <= 0.3


ODD = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
MARKUP = st.lists(
    st.sampled_from(
        [
            "<script>",
            "</script>",
            "<!--",
            "-->",
            "<b>",
            "&amp;",
            "&",
            '"',
            "'",
            "\\",
            "]]>",
            "<img src=x onerror=alert(1)>",
            "{{ 1 }}",
            "{% raw %}",
            "</textarea>",
            "\x00",
            "\x1b[31m",
            "\r\n",
            "\u2028",
            "\u2029",
            "\u202e",
            "\ufeff",
            "مرحبا",
            "你好",
            "שלום",
            "हिन्दी",
            "👩\u200d👩\u200d👧",
            "é",
            "�",
            "javascript:alert(1)",
            "<|im_end|>",
            "x",
        ]
    ),
    max_size=8,
).map("".join)
CONTEXTS = st.one_of(ODD, MARKUP, st.tuples(ODD, MARKUP).map("".join))


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(CONTEXTS, min_size=10, max_size=10))
def test_a_thousand_contexts_come_through_intact_and_escaped(contexts):
    rng = random.Random(0)
    rows = [
        made_row(0, 1, 2, rng, context=c, teacher_prompt=c, prompt=c, tokens=[c, c], context_source=c) for c in contexts
    ]
    page = page_of([Run("run <b>&", {"weight": "w"}, {1: rows}, [{"step": 1, "run": "r"}])])
    parsed = Data(page)
    assert parsed.tags.count("script") == 2 and "img" not in parsed.tags and "b" not in parsed.tags
    inside = page[page.index('id="data">') + len('id="data">') :]
    inside = inside[: inside.index("</script>")]
    assert not set(inside) & set("<>&") and inside.isascii() and inside.isprintable()
    data = parsed.json
    found = [data["texts"][row["c"]] for row in data["runs"][0]["steps"][0]["rows"]]
    assert found == contexts
    assert [data["tokens"][row["tok"][0]] for row in data["runs"][0]["steps"][0]["rows"]] == contexts


def test_statistics_count_what_was_scored():
    row = made_row(0, 1, 3, random.Random(0))
    row |= {"tokens": [" wait", " 12", " foo"], "student_logps": [-1.0, -0.1, None], "log_ratio": [-1.0, 0.5, None]}
    row |= {"row_advantage": 2.0, "advantage": [1.0, 2.5, 2.0]}
    assert [each[-1] for each in scored_tokens(row, 1.0)] == [-1.0, 0.5]
    stats = StepStats([row], 3, 1.0).as_json()
    assert stats["tokens"] == 2 and sum(count for _, count in stats["density"]) == 2
    # exp(-1) and exp(-2): cells of 8/24 nats, counted from -8.
    assert [21 * CELLS + 18, 1] in stats["density"]
    assert stats["kinds"] == [["epistemic", 1, -1.0, -1.0], ["procedural", 1, 0.5, 0.5]]
    assert [(hit["token"], hit["sum"]) for hit in stats["most"]] == [(" 12", 0.5)]
    assert [(hit["token"], hit["sum"]) for hit in stats["least"]] == [(" wait", -1.0)]
    assert stats["most"][0]["before"] == " wait" and stats["most"][0]["after"] == " foo"
    assert stats["sources"] == [[row["context_source"], 1, 1]]
    row |= {"row_advantage": None, "advantage": None}
    assert [each[-1] for each in scored_tokens(row, 0.0)] == [-1.0, 0.5]  # without advantages the effect is u


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        (" Wait", "epistemic"),
        (" check", "epistemic"),
        (" 12", "procedural"),
        ("=", "procedural"),
        (" so", "procedural"),
        (" the", "other"),
        (".", "other"),
        ("", "other"),
        (" ", "other"),
    ],
)
def test_kinds_of_tokens(token, kind):
    assert kind_of(token) == kind


@given(st.integers(1, 12), st.integers(1, 20), st.integers(1, 50), st.integers(1, 3000))
def test_what_is_shown_fits_and_every_step_has_something_where_it_can(steps, rows, length, budget):
    made = {step: [{"tokens": [""] * length} for _ in range(rows)] for step in range(steps)}
    shown = fitting(made, budget)
    total = sum(len(rows) for rows in shown.values()) * length
    assert shown.keys() == made.keys()
    assert total <= budget or total <= 2 * length  # the first and the last step keep one
    if steps * length <= budget:
        assert all(shown.values())


def test_numbers_that_json_lacks_are_left_out():
    nan, inf = float("nan"), float("inf")
    assert thousandths([None, nan, -inf, 0.12345]) == [None, None, -99000, 123]
    assert thousandths([None, nan]) is None and thousandths(None) is None


def test_only_the_last_run_of_a_folder_is_shown(tmp_path):
    made_run(tmp_path, steps=2)
    file = tmp_path / "token_signals/step_000009.parquet"
    table = pyarrow.parquet.read_table(tmp_path / "token_signals/step_000001.parquet")
    pyarrow.parquet.write_table(table.replace_schema_metadata({"run": "another"}), file)
    assert list(read_run(tmp_path).steps) == [1, 2]


def test_the_command(run_folder, tmp_path, capsys):
    other = made_run(tmp_path / "run-b", steps=2)
    assert main(["report", str(run_folder), str(other), "--output", str(tmp_path / "both.html"), "--png"]) == 0
    names = sorted(path.name for path in (tmp_path / "both").iterdir())
    assert names == sorted(f"{run}_{name}.png" for run in "ab" for name in ("heatmap", "signal", "steps", "tokens"))
    assert all((tmp_path / "both" / name).stat().st_size > 5000 for name in names)
    assert len(Data((tmp_path / "both.html").read_text()).json["runs"]) == 2
    assert "both.html" in capsys.readouterr().out
    assert main(["report", str(other)]) == 0 and (other / "report.html").exists()


def test_where_no_teacher_is_asked_nothing_is_said_of_one(tmp_path):
    folder = made_run(tmp_path / "alone", taught=False)
    assert main(["report", str(folder), "--png"]) == 0
    page = (folder / "report.html").read_text()
    assert "<h1>What the algorithm did</h1>" in page
    data = Data(page).json
    (run,) = data["runs"]
    assert run["teacher"] is False
    assert not {"u", "ht"} & data["scales"].keys() and {"d", "hs", "w"} <= data["scales"].keys()
    stats = run["all"]
    assert stats["tokens"] == 3 * 8 * 24 == sum(kind[1] for kind in stats["kinds"])
    assert stats["density"] == [] == stats["positions"]
    assert all((u, effect) == (None, -1.0) for _, _, u, effect in stats["kinds"])
    assert not stats["most"] and stats["least"]
    assert sorted(path.name for path in (folder / "report").iterdir()) == ["steps.png", "tokens.png"]
    both = page_of([read_run(folder), read_run(made_run(tmp_path / "taught"))])
    assert "<h1>What the teacher said</h1>" in both
    assert [each["teacher"] for each in Data(both).json["runs"]] == [False, True]


def test_in_a_browser_neither_is_anything_shown_of_one(browser, tmp_path):
    folder = made_run(tmp_path / "alone", taught=False)
    write_report([folder], folder / "r.html")
    with Opened(browser, folder / "r.html") as page:
        shown = page.inner_text("main").lower()
        assert "advantage" in shown
        assert not [word for word in ("teacher", "mean u", "nats: blue") if word in shown]
        page.hover(".t")
        assert "teacher" not in page.inner_text("#tip").lower() and "\nu\n" not in page.inner_text("#tip")


def test_mistakes_have_one_line(tmp_path, capsys, monkeypatch):
    assert main(["report", str(tmp_path)]) == 2
    assert "log_token_signals" in capsys.readouterr().err
    assert main(["report", "a", "b", "c"]) == 2
    assert "one run or two" in capsys.readouterr().err
    made_run(tmp_path, steps=1)
    for name, more in (("jinja2", []), ("matplotlib.figure", ["--png"])):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            assert main(["report", str(tmp_path), *more]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert "trl-selfdistill[report]" in line


def test_a_long_run_stays_small(tmp_path):
    made_run(tmp_path, steps=50, rows=64, length=60)
    size = write_report([tmp_path], tmp_path / "r.html")
    (run,) = Data((tmp_path / "r.html").read_text()).json["runs"]
    assert size < 5_000_000
    assert run["recorded"] == 3200 > run["shown"] >= 50 and run["all"]["tokens"] > 100_000


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


class Opened:
    """A page that notes what the console says and what it asks the network for."""

    def __init__(self, browser, file, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector(".t")

    def __enter__(self):
        return self.page

    def __exit__(self, *_):
        self.context.close()
        assert self.said == []
        assert [url for url in self.asked if not url.startswith(("file:", "data:"))] == []


@pytest.fixture(scope="module")
def report_file(run_folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("report") / "r.html"
    write_report([run_folder], file)
    return file


def background(page, selector):
    return page.eval_on_selector(selector, "e => getComputedStyle(e).backgroundColor")


@pytest.mark.slow
def test_hover_switch_slider_and_keys(browser, report_file):
    with Opened(browser, report_file) as page:
        assert page.locator("#tip").is_hidden()
        token = page.locator(".t").nth(1)
        token.hover()
        tip = page.locator("#tip").inner_text()
        for name in ("π student", "π teacher", "entropy student", "rlrt/weight", "Aₜ − A", "token 2 of 24"):
            assert name in tip
        colours = {}
        for key in ("u", "d", "hs", "ht", "w"):
            page.locator(f"#measures input[value={key}]").check(force=True)
            colours[key] = page.eval_on_selector_all(".t", "all => all.map(e => e.className + e.style.cssText).join()")
        assert len(set(colours.values())) == 5
        page.locator("#measures input[value=u]").check(force=True)
        low = page.locator(".t.low").count()
        page.locator("#threshold").fill("60")
        assert page.locator(".t.low").count() > low and "≥" in page.locator("#threshold-value").inner_text()
        page.locator("#threshold").fill("0")
        page.locator(".t").first.focus()
        page.keyboard.press("ArrowRight")
        assert "token 2 of" in page.locator("#tip").inner_text()
        page.keyboard.press("End")
        assert "token 24 of" in page.locator("#tip").inner_text()
        page.keyboard.press("Escape")
        assert page.locator("#tip").is_hidden()


@pytest.mark.slow
def test_steps_filters_folds_and_two_sides(browser, report_file):
    with Opened(browser, report_file) as page:
        page.locator("summary").first.click()
        assert "Solution: the solution" in page.locator("details pre").first.inner_text()
        assert page.locator("details mark").first.inner_text().startswith("the solution")
        page.get_by_label("completions").select_option("bare")
        page.wait_for_selector(".t")
        assert page.locator("article.row").count() == 1
        assert "without a teacher" in page.locator("article.row").inner_text()
        page.get_by_label("completions").select_option("all")
        page.get_by_label("step", exact=True).select_option("all")
        assert page.locator("article.row").count() == 24
        page.locator("#compare").check()
        page.wait_for_selector(".panel:nth-child(2) .t")
        assert page.locator(".panel").count() == 2
        assert page.locator("#curves figure").count() >= 5


@pytest.mark.slow
def test_both_colour_schemes_and_the_switch(browser, report_file):
    seen = {}
    for scheme in ("light", "dark"):
        with Opened(browser, report_file, color_scheme=scheme) as page:
            seen[scheme] = background(page, "body")
            page.locator("#theme").click()
            seen[scheme + " switched"] = background(page, "body")
    assert seen["light"] == seen["dark switched"] != seen["dark"] == seen["light switched"]


@pytest.mark.slow
def test_a_phone_need_not_scroll_sideways(browser, report_file):
    with Opened(browser, report_file, viewport={"width": 360, "height": 780}, has_touch=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator(".t").nth(2).tap()
        assert page.locator("#tip").is_visible()


@pytest.mark.slow
def test_text_of_others_is_text_in_the_browser(browser, tmp_path):
    bad = "<img src=x onerror=\"console.log('run')\"></script><script>console.log('run')</script>\u2028\u202e\x00&amp;"
    made_run(tmp_path, steps=1, context=bad, teacher_prompt=f"before {bad} after", prompt=bad, tokens=[bad, "b"] * 12)
    write_report([tmp_path], tmp_path / "r.html")
    with Opened(browser, tmp_path / "r.html") as page:
        assert page.locator("details mark").first.text_content() == bad
        assert page.locator(".asked").first.text_content() == bad
        assert page.locator("img").count() == 0


@pytest.mark.slow
def test_a_long_run_opens_at_once(browser, tmp_path):
    made_run(tmp_path, steps=50, rows=64, length=30)
    write_report([tmp_path], tmp_path / "r.html")
    start = time.process_time(), time.perf_counter()
    with Opened(browser, tmp_path / "r.html") as page:
        timing = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        drawn = page.locator(".t").count()
    print(f"loaded in {timing:.0f} ms, {time.perf_counter() - start[1]:.2f} s with the driver")
    assert 0 < drawn < 64 * 30  # what is far from the window is not drawn
