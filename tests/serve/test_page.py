"""The page at "/" in a real browser: results equal to the Python API's, keyboard use, no errors."""

from __future__ import annotations

import hashlib
import re
import shutil

import numpy as np
import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

QUERIES = ["대한민국의 수도는?", "mammals"]
PASSAGES = ["서울은 수도이다.", "Whales <b>swim</b> & sing.", " ".join(["가"] * 600)]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, client):
    """Open the page, and check that it makes no external requests and logs no errors."""
    opened = browser.new_page()
    strangers, complaints = [], []
    own = str(client.base_url)
    opened.on("request", lambda request: strangers.append(request.url) if own not in request.url else None)
    opened.on("console", lambda message: complaints.append(message.text) if is_complaint(message) else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(own)
    yield opened
    opened.close()
    assert [url for url in strangers if not url.startswith("data:")] == []
    assert complaints == []


def is_complaint(message):
    """Return True if a console line is the page's fault; the browser itself logs responses of 400."""
    return message.type == "error" and "status of 400" not in message.text


def compare(page, queries=QUERIES, passages=PASSAGES):
    page.get_by_label("Queries, one per line").fill("\n".join(queries))
    page.get_by_label("Passages, one per line").fill("\n".join(passages))
    page.keyboard.press("Control+Enter")
    page.get_by_role("table").first.wait_for()


def cells(page, row):
    return [cell.inner_text() for cell in page.locator(f"#{row} td").all()]


def test_the_heat_map_is_the_offline_similarity(page, offline):
    compare(page)
    expected = offline.similarity(offline.encode_queries(QUERIES), offline.encode_passages(PASSAGES))
    shown = cells(page, "map")
    found = np.asarray([float(text.removesuffix(" ★")) for text in shown]).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=6e-4, rtol=0)
    stars = np.asarray(["★" in text for text in shown]).reshape(expected.shape)
    assert stars.argmax(axis=1).tolist() == expected.argmax(axis=1).tolist()
    assert stars.sum() == len(QUERIES)


def test_tokens_and_what_was_cut(page, offline):
    compare(page)
    rows = np.asarray(cells(page, "counts")).reshape(-1, 4)
    counts = [*offline.count_tokens(QUERIES, "query"), *offline.count_tokens(PASSAGES, "passage")]
    assert [int(text.replace(",", "")) for text in rows[:, 2]] == counts
    assert [text != "no" for text in rows[:, 3]] == [count > 512 for count in counts]
    assert "1 truncated" in page.get_by_role("status").inner_text()


def test_a_text_is_shown_as_text(page):
    compare(page)
    assert page.locator("#map b").count() == 0
    assert page.get_by_role("columnheader", name="Whales <b>swim</b> & sing.").count() == 1


def test_it_works_by_keyboard_alone(page):
    page.keyboard.press("Tab")
    seen = []
    for _ in range(6):
        seen.append(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    assert seen[:4] == ["queries", "passages", "key", "compare"]
    page.get_by_role("button", name="Compare").focus()
    page.keyboard.press("Enter")
    page.get_by_role("table").first.wait_for()


def test_it_says_what_things_are(page):
    compare(page)
    assert page.locator("h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
    for control in page.locator("textarea, input").all():
        assert page.locator(f"label[for={control.get_attribute('id')}]").count() == 1
    for table in page.locator("table").all():
        assert table.locator("caption").inner_text()
        assert table.locator("th:not([scope])").count() == 0
    assert page.get_by_role("alert").count() == 1


@pytest.mark.parametrize(("queries", "passages"), [([], ["a"]), (["a"], []), ([" "], [" "])])
def test_nothing_entered(page, queries, passages):
    page.get_by_label("Queries, one per line").fill("\n".join(queries))
    page.get_by_label("Passages, one per line").fill("\n".join(passages))
    page.get_by_role("button", name="Compare").click()
    assert page.get_by_role("alert").inner_text() == "Enter at least one query and one passage."


def test_errors_of_the_server_are_shown(page):
    page.get_by_label("Queries, one per line").fill("\n".join(["a"] * 2049))
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("2,049 texts: expected at most 2,048").wait_for()
    assert page.get_by_role("button", name="Compare").is_enabled()


def test_an_api_key(browser, serving):
    with serving(api_keys_sha256=(hashlib.sha256(b"secret").hexdigest(),)) as client:
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.get_by_role("button", name="Compare").click()
        page.get_by_role("alert").get_by_text("requires an API key").wait_for()
        page.get_by_label("API key").fill("secret")
        page.get_by_role("button", name="Compare").click()
        page.get_by_role("table").first.wait_for()
        assert page.get_by_role("alert").inner_text() == ""
        page.close()


def test_a_server_that_is_gone(browser, serving):
    page = browser.new_page()
    with serving() as client:
        page.goto(str(client.base_url))
        page.get_by_text("tiny-seeded").wait_for()
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("The server cannot be reached.").wait_for()
    page.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    compare(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


_CONTRAST = """() => {
  const parts = (color) => color.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255);
  const linear = (part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const weigh = ([red, green, blue]) => 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  const light = (color) => weigh(parts(color).map(linear));
  const of = (one, other) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  const cells = Array.from({ length: 101 }, (_, percent) => cellOf(percent / 100, 0, 1, false));
  document.body.append(...cells);
  const found = cells.map((cell) => {
    const style = getComputedStyle(cell);
    return of(light(style.color), light(style.backgroundColor));
  });
  cells.forEach((cell) => cell.remove());
  return Math.min(...found);
}"""


def test_every_color_of_the_heat_map_can_be_read(page):
    assert page.evaluate(_CONTRAST) > 4.45  # WCAG AA requires 4.5; the margin allows for rounding


def test_a_text_keeps_its_width_on_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 800})
    compare(page)
    assert page.locator("#counts td").first.bounding_box()["width"] > 150
    assert page.evaluate("document.documentElement.scrollHeight") < 2500


def test_the_policy_lets_nothing_else_run(client):
    policy = client.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert len(re.findall("sha256-", policy)) == 2
