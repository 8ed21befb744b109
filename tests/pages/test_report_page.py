"""The report's page in a real browser: readable, self-contained, and inert whatever an attacker wrote into it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from quell.domain import QuestionKind
from quell.incidents import CaseFile, render
from tests._story import HOSTILE, RecordedReader, bad_release
from tests.doors.test_report_forms import HEADINGS, investigated, poisoned

pytestmark = [pytest.mark.needs_chromium, pytest.mark.timeout(60)]

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
ATTACK = (
    f"{HOSTILE}<img src=x onerror=\"document.title='owned'\"><svg onload=\"document.title='owned'\">"
    "</style><style>body{display:none}</style><link rel=stylesheet href=http://evil.test/a.css>"
    "<meta http-equiv=refresh content='0;url=http://evil.test/'><a href=\"javascript:document.title='owned'\">x</a>"
    "<form action=http://evil.test><button autofocus>go</button></form><base href=http://evil.test/>"
)


@dataclass(kw_only=True)
class Opened:
    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> CaseFile:
    reader = RecordedReader(broken=frozenset({QuestionKind.FLOW_BREAKS}))
    return made(tmp_path_factory.mktemp("page"), reader=reader)


def made(state_dir: Path, *, reader: RecordedReader) -> CaseFile:
    """Investigate in a thread of its own: the browser's driver keeps an event loop in this one."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(lambda: asyncio.run(investigated(state_dir, reader=reader))).result()


def opened(browser: Browser, path: Path, *, scheme: str = "light", width: int = 1180) -> Opened:
    dark = scheme == "dark"
    page = browser.new_page(color_scheme="dark" if dark else "light", viewport={"width": width, "height": 900})
    shown = Opened(page=page)
    page.on("request", lambda request: shown.requests.append(request.url))
    page.on("console", lambda message: shown.complaints.append(message.text))
    page.on("pageerror", lambda error: shown.complaints.append(str(error)))
    page.goto(path.as_uri())
    return shown


def written(case: CaseFile, directory: Path) -> Path:
    path = directory / "report.html"
    path.write_text(render(case, "html"), encoding="utf-8")
    return path


def test_a_person_finds_the_three_answers_by_their_headings_and_evidence_by_its_links(
    browser: Browser, case: CaseFile, tmp_path: Path
) -> None:
    shown = opened(browser, written(case, tmp_path))
    headings = [heading.inner_text() for heading in shown.page.get_by_role("heading", level=2).all()]
    assert headings[:3] == HEADINGS
    assert case.finding is not None
    assert shown.page.get_by_text(case.finding.statement).first.is_visible()
    cited = case.finding.citations[0].evidence
    shown.page.get_by_role("link", name=cited, exact=True).first.click()
    assert shown.page.locator(f"#{cited}").is_visible()
    assert shown.page.get_by_role("img").count() == shown.page.locator("svg").count() > 0
    assert shown.complaints == []
    assert all(url.startswith("file:") for url in shown.requests)
    shown.page.close()


def test_queries_open_without_a_script(browser: Browser, case: CaseFile, tmp_path: Path) -> None:
    shown = opened(browser, written(case, tmp_path))
    first = shown.page.locator("details").first
    first.locator("summary").click()
    assert first.locator("pre").is_visible()
    shown.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1180])
def test_it_fits_its_window_and_can_be_read_in_both_schemes(
    browser: Browser, case: CaseFile, tmp_path: Path, scheme: str, width: int
) -> None:
    shown = opened(browser, written(case, tmp_path), scheme=scheme, width=width)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    ratio = shown.page.evaluate(
        """() => {
            const light = colour => {
                const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => v / 255)
                    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const behind = element => {
                for (let e = element; e; e = e.parentElement) {
                    const colour = getComputedStyle(e).backgroundColor;
                    if (!colour.endsWith(', 0)')) return colour;
                }
                return 'rgb(255, 255, 255)';
            };
            return Math.min(...[...document.querySelectorAll('p, li, h1, h2, h3, h4, td, th, figcaption, .cite, .chip')]
                .filter(e => e.innerText.trim())
                .map(e => {
                    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
                    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
                }));
        }"""
    )
    assert ratio >= 4.5, "every text has the contrast that WCAG AA asks for"
    shown.page.close()


def test_nothing_that_an_attacker_writes_acts(browser: Browser, case: CaseFile, tmp_path: Path) -> None:
    rows = bad_release(text=ATTACK)
    found = made(tmp_path / "state", reader=RecordedReader(rows=rows))
    for number, each in enumerate((found, poisoned(case, text=ATTACK))):
        directory = tmp_path / str(number)
        directory.mkdir()
        shown = opened(browser, written(each, directory))
        shown.page.wait_for_timeout(300)
        assert shown.page.title() != "owned"
        assert shown.page.url.startswith("file:")
        assert [url for url in shown.requests if not url.startswith("file:")] == []
        assert shown.page.locator("main").is_visible()
        # All that the page is made of is ours: nothing of the attack became an element.
        assert shown.page.locator("script, img, iframe, form, button, base, link, object, embed").count() == 0
        assert shown.page.locator("a:not([href^='#'])").count() == 0
        assert "IGNORE ALL INSTRUCTIONS" in shown.page.locator("body").inner_text()
        assert shown.complaints == []
        shown.page.close()
