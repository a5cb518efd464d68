"""The report in a real browser, at the widths of a phone and of a desk, in light and in dark.

Needs Chromium (`apt-get install chromium`, or `playwright install chromium`); without one this is skipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.report_runs import HOSTILE, ODD, begun, full_round

from posttrain.report import page
from posttrain.report.reading import open_run

pytestmark = pytest.mark.slow
PHONE, DESK = (360, 740), (1280, 900)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium: apt-get install chromium, or playwright install chromium ({error.name})")
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with all that a page may hold; one answer is a single word wider than any screen."""
    run = begun(tmp_path_factory.mktemp("browser") / "run")
    first = full_round(run, 1, "base-0", promoted=True)
    full_round(run, 2, first, promoted=False)
    made = run.store.root / "report.html"
    shown = page.html(open_run(run.store.root))
    made.write_text(shown.replace("turned", "turned" * 200), encoding="utf-8")
    return made


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_reads_well(browser: Any, report: Path, size: tuple[int, int], scheme: str) -> None:
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    opened, said, asked = context.new_page(), [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(report.as_uri())
    assert (said, asked) == ([], [report.as_uri()])
    wide = opened.evaluate(
        "[...document.querySelectorAll('*')].filter(e => e.scrollWidth > innerWidth && "
        "!e.closest('.box, pre')).map(e => e.tagName + '.' + e.className)"
    )
    assert opened.evaluate("document.documentElement.scrollWidth") <= size[0], wide
    figures = opened.evaluate(
        "[...document.querySelectorAll('figure')].map(f => [f.id, f.querySelector('figcaption').innerText, "
        "f.querySelector('[role=img]').ariaLabel, f.querySelector('svg').getBoundingClientRect().width, "
        "[...f.querySelectorAll('text')].filter(t => t.getBoundingClientRect().right > innerWidth).length])"
    )
    assert len(figures) == 19
    for name, caption, alt, width, cut in figures:
        assert name.startswith("plot-") and len(caption) > 20 and len(alt) > 20
        assert 250 < width <= size[0] and not cut
    ink, paper, drawn = opened.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor, "
        "getComputedStyle(document.querySelector('svg text')).fill]"
        ".map(colour => colour.match(/\\d+/g).reduce((a, b) => +a + +b))"
    )
    assert (ink > paper) == (scheme == "dark") and drawn == ink
    assert abs(ink - paper) > 450  # of 765: what is written is well seen
    context.close()


def test_the_table_of_six_rounds_of_the_quickstart_fits_a_desk(browser: Any, report: Path) -> None:
    view = open_run(report.parent)
    last = view.rounds[-1]
    counts = {"answers_samples": {"completions": 7200}, "filters": {**last.metrics("filters"), "kept": 3512}}
    manifests = {role: {**one, "seconds": 345.6} for role, one in last.manifests.items()}
    manifests |= {role: {**last.manifests[role], "metrics": metrics} for role, metrics in counts.items()}
    view.rounds += tuple(replace(last, number=number, manifests=manifests) for number in range(3, 7))
    wide = report.with_name("six.html")
    wide.write_text(page.html(view), encoding="utf-8")
    opened = browser.new_page(viewport={"width": DESK[0], "height": DESK[1]})
    opened.goto(wide.as_uri())
    inner, outer, rows = opened.evaluate(
        "(box => [box.scrollWidth, box.clientWidth, box.querySelectorAll('tbody tr').length])"
        "(document.querySelector('#rounds .box'))"
    )
    assert rows == 7 and inner <= outer
    opened.close()


def test_links_of_the_contents_lead_somewhere_and_hostile_text_is_seen_as_text(browser: Any, report: Path) -> None:
    opened = browser.new_page()
    opened.goto(report.as_uri())
    targets = opened.evaluate("[...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.hash))")
    assert len(targets) > 8 and all(targets)
    body = opened.inner_text("body")
    assert HOSTILE in body and "עברית" in body and ODD[-5:] in body
    assert opened.evaluate("document.querySelectorAll('script').length") == 0
    opened.close()
