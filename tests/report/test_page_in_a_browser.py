"""The page as a reader uses it, in a headless Chromium: clicked through, filtered, printed."""

import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from archloop.ranking.record import Readings
from archloop.report import html
from report import studies
from report.browser import Browser, program

pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif(program() is None, reason="needs Chromium"),
]
CONTRASTS = """(() => {
  const rgb = name => {
    const sample = document.createElement('i');
    document.body.append(sample);
    sample.style.color = `var(--${name})`;
    const found = getComputedStyle(sample).color.match(/\\d+/g);
    sample.remove();
    return found;
  };
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const weights = [.2126, .7152, .0722];
  const light = c => c.reduce((sum, v, i) => sum + linear(v / 255) * weights[i], 0);
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + .05) / (y + .05);
  };
  return ['ink', 'soft', 'link', 'over', 'good'].flatMap(
    text => ['paper', 'wash'].map(behind => ratio(rgb(text), rgb(behind))));
})()"""
"""By the rule of WCAG 2.1, of the page's colours of text on its two backgrounds."""
OPEN = "document.querySelector('dialog[open]')?.id"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = {
        "name": "example",
        "budgets": [{"metric": "decode_p50_ms", "limit": 7.0, "context": 1024}],
    }
    study = studies.study()
    read = {"decode_p50_ms at 1024 on host": Readings(mean=math.log(4.0), sd=0.02, n=3)}
    trials = tuple(trial.model_copy(update={"readings": read}) for trial in study.trials)
    study = study.model_copy(update={"recipe": recipe, "trials": trials})
    return html.write(study, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def reader(browser: Browser, page: Path) -> Browser:
    browser.size(1400)
    browser.open(page)
    return browser


def shown(reader: Browser) -> list[str]:
    rows = "[...document.querySelectorAll('#trials tbody tr')].filter(r => !r.hidden)"
    found: list[str] = reader.run(f"{rows}.map(r => r.dataset.number)")
    return found


def test_a_row_a_point_and_a_parent_open_a_trials_page(reader: Browser) -> None:
    reader.run("document.querySelector('#trials tr[data-number=\"5\"]').click()")
    assert reader.run(OPEN) == "trial-5"
    assert "block 0" in reader.run("document.querySelector('dialog[open]').innerText")
    reader.run("document.querySelector('dialog[open] button[data-open=\"1\"]').click()")
    assert reader.run(OPEN) == "trial-1"
    reader.press("Escape", 27)
    assert reader.run(OPEN) is None
    reader.run(
        "document.getElementById('plot-latency').emit('plotly_click', {points: [{customdata: 3}]})"
    )
    assert reader.run(OPEN) == "trial-3"


def test_the_keyboard_reaches_a_trial(reader: Browser) -> None:
    reader.run("document.querySelector('#trials tr[data-number=\"0\"]').focus()")
    assert reader.run("document.querySelector('tr.picked').dataset.number") == "0"
    reader.press("Enter", 13)
    assert reader.run(OPEN) == "trial-0"
    reader.press("Enter", 13)  # The button that closes has the focus.
    assert reader.run(OPEN) is None


def test_a_row_shows_its_points_and_a_point_its_row(reader: Browser) -> None:
    reader.run("point(1)")
    hovered = "document.querySelectorAll('#plot-latency .hoverlayer .hovertext').length"
    end = time.monotonic() + 10
    while not reader.run(hovered):
        assert time.monotonic() < end, "the plot shows no label"
        time.sleep(0.1)
    reader.run(
        "document.getElementById('plot-memory').emit('plotly_hover', {points: [{customdata: 5}]})"
    )
    assert reader.run("document.querySelector('tr.picked').dataset.number") == "5"


def test_the_table_sorts_and_filters(reader: Browser) -> None:
    everyone = shown(reader)
    column = (
        "[...document.querySelectorAll('#trials th button')].find(b => b.innerText == 'latency')"
    )
    reader.run(f"{column}.click()")
    assert shown(reader)[:4] == ["1", "3", "5", "0"]
    reader.run(f"{column}.click()")
    assert shown(reader)[:5] == ["-1", "0", "5", "3", "1"]
    assert reader.run("document.querySelector('th[aria-sort]').innerText") == "latency"
    reader.run(
        "document.getElementById('words').value = 'crossover';"
        "document.getElementById('words').dispatchEvent(new Event('input'))"
    )
    assert shown(reader) == ["5"]
    reader.run(
        "document.getElementById('words').value = '';"
        "document.getElementById('status').value = 'rejected';"
        "document.getElementById('status').dispatchEvent(new Event('change'))"
    )
    assert shown(reader) == ["2"]
    assert len(everyone) == 7


def test_csv_and_png_are_made_in_the_page(reader: Browser) -> None:
    picture = reader.run("Plotly.toImage('plot-latency', {format: 'png', width: 600, height: 400})")
    assert picture.startswith("data:image/png;base64,")
    reader.run(
        "window.made = []; URL.createObjectURL = blob => (made.push(blob), 'blob:x');"
        "HTMLAnchorElement.prototype.click = function () { made.push(this.download) };"
    )
    reader.run("document.getElementById('csv').click()")
    text = reader.run("made[0].text()")
    lines = text.strip().split("\r\n")
    assert len(lines) == 8
    assert lines[0].startswith('"trial","layout","place","quality"')
    assert '"short_conv short_conv short_conv short_conv"' in text
    assert reader.run("made[1]") == "example.csv"
    assert reader.run("document.querySelectorAll('button[data-plot]').length") >= 4


@pytest.mark.parametrize("width", [390, 700, 1024, 1400])
def test_nothing_scrolls_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.size(width)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") <= width
    table = "document.getElementById('trials')"
    assert browser.run(f"{table}.scrollWidth <= {table}.parentElement.clientWidth")


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_what_is_behind_it(browser: Browser, page: Path, dark: bool) -> None:
    browser.size(1400, dark=dark)
    browser.open(page)
    assert min(browser.run(CONTRASTS)) > 4.5
    ink = browser.run("document.getElementById('plot-latency').layout.font.color")
    assert ink == ("#e2e8ee" if dark else "#26323f")


def test_every_plot_and_drawing_says_in_words_what_it_is(reader: Browser) -> None:
    assert reader.run("[...document.querySelectorAll('figure')].every(f => f.ariaLabel)")
    drawings = "[...document.querySelectorAll('svg[role=img]')]"
    assert reader.run(f"{drawings}.every(d => d.querySelector('title').textContent)")


def test_paper_takes_two_pages_and_the_screen_is_as_before(reader: Browser) -> None:
    height = reader.run("document.getElementById('plot-latency').layout.height")
    pdf = reader.printed()
    assert len(re.findall(rb"/Type\s*/Page[^s]", pdf)) <= 2
    end = time.monotonic() + 10
    while reader.run("document.getElementById('plot-latency').layout.height") != height:
        assert time.monotonic() < end, "the plots stayed small"
        time.sleep(0.1)


def test_the_page_reports_no_error_and_asks_for_nothing(reader: Browser) -> None:
    assert reader.errors == []
    asked = "performance.getEntriesByType('resource').map(e => e.name)"
    assert [name for name in reader.run(asked) if not name.startswith(("blob:", "data:"))] == []
