"""The HTML report in a real browser: what it shows, how it is operated, and that nothing in it is executed or loaded."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from documents import check, document, error, verdict

from pytest_trainability.report.html import page as page_of
from pytest_trainability.report.html import panel

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REQUIRED = bool(os.environ.get("REQUIRE_CHROMIUM"))
"""Whether the tests fail without Chromium, as in continuous integration."""
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
]
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\"javascript:window.hacked=1"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM or REQUIRED), reason="needs Chromium: apt-get install chromium"),
]
Show = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright's client, with a new profile."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Show]:
    """Open a text as a page. At the end, nothing was loaded, no error occurred and no script of a text has run."""
    opened = []

    def show(text: str, fragment: str = "", *, width: int = 1320, **options: Any) -> Any:
        file = tmp_path / "report.html"
        file.write_text(text, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        tab, troubles = context.new_page(), []
        tab.on("request", lambda request: None if request.url.startswith("file:") else troubles.append(request.url))
        tab.on("console", lambda message: troubles.append(message.text))
        tab.on("pageerror", lambda found: troubles.append(str(found)))
        tab.goto(file.as_uri() + fragment)
        opened.append((context, tab, troubles))
        return tab

    yield show
    for context, tab, troubles in opened:
        assert troubles == []
        assert tab.evaluate("window.hacked") is None
        context.close()


def several() -> dict[str, Any]:
    """Six checks: two failed ones, one of them by a parameter's gradient, one without a bound, one error."""
    norm = check("tests/test_b.py::test_norm", seed=2, status="failed")
    norm["verdicts"].append(
        verdict(
            "gradient_norm", [1e-9], 1e-6, None, scale="log", where="h.3.mlp.weight", worst=[["h.3.mlp.weight", 1e-9]]
        )
    )
    return document(
        [
            check("tests/test_a.py::test_held", seconds=3.0),
            check("tests/test_a.py::test_gain", rate=-2.0, seed=1),
            norm,
            check("tests/test_b.py::test_free", bounds=None, seed=3),
            check("tests/test_c.py::test_changed", rate=0.1, old_rate=0.0, seed=4, status="held", model="ResNet"),
        ],
        [error("tests/test_c.py::test_error", "The model has no loss.")],
    )


def shown(tab: Any) -> list[str]:
    return tab.evaluate(
        "[...document.querySelectorAll('#checks > .check')].filter(c => !c.hidden).map(c => c.dataset.id.split('::')[1])"
    )


def fragment(tab: Any) -> str:
    return str(tab.evaluate("decodeURIComponent(location.hash)"))


ALL = ["test_gain", "test_norm", "test_error", "test_free", "test_held", "test_changed"]


FILTERS = {
    "": ALL,
    "is:failed": ["test_gain", "test_norm"],
    "is:failed measure:log_gain": ["test_gain", "test_norm"],
    "fails:gradient_norm": ["test_norm"],
    "is:failed,error -fails:log_gain": ["test_norm", "test_error"],
    "is:changed model:resnet": ["test_changed"],
    "file:test_b": ["test_norm", "test_free"],
    '"12 × GPT2Block" free': ["test_free"],
    "nowhere": [],
}


def test_the_filter(show: Show) -> None:
    tab = show(page_of(several()))
    for text, found in FILTERS.items():
        tab.fill("#filter", text)
        assert shown(tab) == found, text
        assert tab.inner_text("#shown") == f"{len(found)} of 6 shown"
        assert tab.is_visible("#none") == (not found)


def test_filter_order_and_open_checks_live_in_the_address(show: Show) -> None:
    text = page_of(several())
    tab = show(text)
    tab.fill("#filter", "test_")
    tab.select_option("#sort", "seconds")
    tab.check("#hide")
    assert shown(tab) == ["test_gain", "test_norm", "test_error"]
    tab.uncheck("#hide")
    assert shown(tab)[0] == "test_held", "the longest first"
    tab.click("#checks > .check >> nth=0 >> summary >> nth=0")
    state = fragment(tab)
    assert state.startswith("#q=test_&sort=seconds&open=") and state.count(",") == 2
    again = show(text, state)
    assert (again.input_value("#filter"), again.input_value("#sort"), shown(again)) == ("test_", "seconds", shown(tab))
    opened = "[...document.querySelectorAll('#checks > .check[open]')].map(c => c.id)"
    assert again.evaluate(opened) == tab.evaluate(opened) != []
    again.click(".counts a >> nth=0")
    assert shown(again) == ["test_gain", "test_norm"], "the counts of the verdict bar are links"


def test_keys(show: Show) -> None:
    tab = show(page_of(several()))
    focused = "document.activeElement.closest('.check')?.dataset.id.split('::')[1]"

    def press(keys: str) -> Any:
        for key in keys.split():
            tab.keyboard.press(key)
        return tab.evaluate(focused)

    assert [press("j"), press("j"), press("k"), press("f"), press("f"), press("f")] == [
        *("test_gain", "test_norm", "test_gain", "test_norm", "test_error", "test_gain")
    ]
    is_open = tab.evaluate("document.activeElement.parentElement.open")
    press("Enter")
    assert tab.evaluate("document.activeElement.parentElement.open") is not is_open
    press("/")
    assert tab.evaluate("document.activeElement.id") == "filter"
    press("j ?")
    assert tab.input_value("#filter") == "j?", "letters are letters in the filter"
    press("Escape")
    assert tab.evaluate("document.activeElement.id") != "filter"
    press("?")
    assert tab.is_visible("#help")
    press("Escape")
    assert not tab.is_visible("#help")


def test_tree_charts_and_tables_are_linked(show: Show) -> None:
    tab = show(page_of(document([check("tests/test_a.py::test_gain", rate=-2.0)])))
    plot = tab.locator("figure[data-axis=steps] .plot").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    plot.hover(position={"x": box["width"] * 3.5 / 12, "y": 60})
    cells = tab.evaluate(
        "[...document.querySelectorAll('table[data-axis=steps] tr.on')].map(r => r.cells[0].textContent)"
    )
    assert cells == ["h.3"]
    readout = tab.inner_text("figure[data-axis=steps] .readout >> nth=0")
    assert readout.startswith("h.3 · growth -") and " · accumulated -" in readout
    assert tab.evaluate("[...document.querySelectorAll('.module.on > span > code')].map(c => c.textContent)") == [
        "{0-11}"
    ]
    cursor = tab.locator("figure[data-axis=steps] .plot .cursor").first.bounding_box()
    assert abs(cursor["x"] - box["x"] - box["width"] * 3 / 12) < 2

    tab.hover(".module[data-steps]")
    assert tab.evaluate("document.querySelectorAll('table[data-axis=steps] tr.on').length") == 12
    tab.click(".module[data-steps] > span > code")
    tab.mouse.move(5, 5)
    assert tab.evaluate("document.querySelectorAll('table[data-axis=steps] tr.on').length") == 12, "a click pins"
    tab.keyboard.press("Escape")
    assert tab.evaluate("document.querySelectorAll('tr.on, .module.on').length") == 0
    plot.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End"):
        tab.keyboard.press(key)
    assert tab.inner_text("figure[data-axis=steps] .readout >> nth=0").startswith("h.11 ·")


def test_the_copy_button_copies_the_command(show: Show) -> None:
    tab = show(page_of(document([check("tests/test_a.py::test_gain", rate=-2.0)])))
    tab.click("[data-copy]")
    tab.wait_for_function("document.querySelector('[data-copy]').textContent === 'Copied'")
    tab.focus("#filter")
    tab.keyboard.press("Control+V")
    assert tab.input_value("#filter") == "pytest tests/test_a.py::test_gain --trainability-seeds=0-3"


CONTRASTS = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = text => { const c = rgb(text).slice(0, 3).map(v => linear(v / 255));
    return .2126 * c[0] + .7152 * c[1] + .0722 * c[2]; };
  const behind = element => { for (let e = element; e; e = e.parentElement) { const color = getComputedStyle(e).backgroundColor;
    if ((rgb(color)[3] ?? 1) === 1) return color; } return getComputedStyle(document.documentElement).backgroundColor; };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const texts = [...element.childNodes].filter(node => node.nodeType === 3 && node.data.trim());
    if (!texts.length || !element.checkVisibility() || element.closest("svg, script, style, option")) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), element.className + " " + texts[0].data.trim()]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_the_contrast_that_people_need(show: Show, scheme: str) -> None:
    """4.5 to 1, as WCAG's level AA demands of small texts."""
    tab = show(page_of(several()), color_scheme=scheme)
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    found = tab.evaluate(CONTRASTS)
    assert len(found) > 200, "the texts were not seen"
    assert [pair for pair in found if pair[0] < 4.5] == []
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    tab.click("#theme")
    tab.click("#theme")
    assert tab.inner_text("#theme") == "Theme: dark"
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


def test_a_narrow_phone_shows_everything_without_scrolling_sideways(show: Show) -> None:
    tab = show(page_of(several()), width=390)
    tab.evaluate("document.querySelectorAll('#checks > .check').forEach(d => { d.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_paper_is_light_and_shows_what_failed(show: Show) -> None:
    checks = [check(f"tests/test_a.py::test_{k}", rate=-2.0, layers=3) for k in range(4)]
    tab = show(page_of(document([*checks, check("tests/test_a.py::test_held", layers=3)])), color_scheme="dark")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate("document.querySelectorAll('#checks > .check[open]').length") == 4
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not tab.is_visible(".controls")
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate("document.querySelectorAll('#checks > .check[open]').length") == 0


def test_hostile_texts_stay_texts(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in what is unpacked when it is opened."""
    monkeypatch.setattr(sys.modules[page_of.__module__], "PLAIN_SIZE", 0)
    bad = check(HOSTILE + "::" + HOSTILE, rate=-2.0, model=HOSTILE, notes=[HOSTILE], reproduce=HOSTILE, cause=[HOSTILE])
    bad["modules"][1]["name"] = bad["modules"][1]["kind"] = HOSTILE
    bad["steps"]["names"][0] = bad["values"][2]["elements"][0]["name"] = HOSTILE
    tab = show(page_of(document([bad], [error(HOSTILE, HOSTILE)])))
    tab.wait_for_selector("figure")
    tab.locator("figure .plot").first.hover(position={"x": 5, "y": 60})
    assert HOSTILE in tab.inner_text(".readout >> nth=0")
    assert HOSTILE in tab.inner_text(".check .command code")
    assert tab.evaluate("document.images.length") == 0
    tab.fill("#filter", HOSTILE)
    tab.fill("#filter", "")


def test_packed_checks_are_unpacked_when_they_are_opened(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[page_of.__module__], "PLAIN_SIZE", 0)
    tab = show(page_of(several()))
    tab.wait_for_function("document.querySelectorAll('.check[open] figure').length > 0")
    held = tab.locator("#checks > .check", has_text="test_held")
    assert held.locator("figure").count() == 0
    held.locator("summary").first.click()
    held.locator("figure .plot").first.hover()
    assert held.locator("tr.on").count() == 1
    assert held.locator("[data-copy]").first.is_visible()


def test_badges_do_not_cover_the_strips_of_the_module_tree_on_a_phone(show: Show) -> None:
    tab = show(page_of(document([check("tests/test_a.py::test_gain", rate=-2.0)])), width=320)
    badge = tab.locator(".module .badge").first.bounding_box()
    strip = tab.locator(".module", has=tab.locator(".badge")).locator(".strip").first.bounding_box()
    assert badge["x"] + badge["width"] <= strip["x"]


@pytest.mark.parametrize("width", [320, 390])
def test_the_parts_of_a_row_do_not_overlap_on_a_phone(show: Show, width: int) -> None:
    long = check("tests/test_a.py::test_free", bounds=None, status="nothing asserted")
    long["log_gain"].update(mean=123456.789, spread=0.000123)
    tab = show(page_of(document([long])), width=width)
    boxes = [tab.locator(f".check > summary > .{name}").bounding_box() for name in ("status", "gain", "took")]
    for left, right in pairwise(boxes):
        assert left["x"] + left["width"] <= right["x"]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_without_a_script_the_checks_can_be_read(show: Show) -> None:
    tab = show(page_of(several()), java_script_enabled=False)
    assert not tab.is_visible(".controls")
    assert tab.locator("figure .plot").first.is_visible()
    held = tab.locator("#checks > .check", has_text="test_held")
    held.locator("summary").first.click()
    assert held.locator("figure .plot").first.is_visible()


def test_a_panel_keeps_its_style_to_itself(show: Show) -> None:
    around = "<!doctype html><body style='background: white'><h4 id=mine style='font-size: 40px'>mine</h4><code id=code>x</code>"
    tab = show(around + panel(check("tests/test_a.py::test_gain", rate=-2.0)))
    plain = show(around)
    style = (
        "id => { const s = getComputedStyle(document.getElementById(id)); return [s.fontSize, s.fontFamily, s.color]; }"
    )
    assert [tab.evaluate(style, name) for name in ("mine", "code")] == [
        plain.evaluate(style, n) for n in ("mine", "code")
    ]
    assert tab.locator(".trainability figure .plot").first.bounding_box()["height"] == 190
