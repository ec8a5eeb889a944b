"""The page in a real browser against a real service, as people use it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.access.keys import new_key
from service.bundle.manifest import ExpertInfo, TaskInfo
from tests.service.page.audit import CONTRAST, STRUCTURE, assert_accessible
from tests.service.page.browser import Browser, Watched
from tests.service.page.bundles import BINARY, DAYS, GENRES, MARKUP, SINGLE, STAGES, hostile_task, write_task_bundle
from tests.service.page.here import serving_here
from tests.serving import Server, running_server
from tests.tiny_attribution import write_attributed_bundle
from tests.tiny_bundle import TINY_UNCERTAINTY

pytestmark = pytest.mark.slow
NOTICE = "Research use. Not for clinical decisions."


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service of the tiny bundle, with uncertainty and attributions. Asks for the browser first: without one nothing starts."""
    folder = tmp_path_factory.mktemp("page")
    bundle = write_attributed_bundle(folder / "bundle", uncertainty=TINY_UNCERTAINTY)
    with running_server(
        bundle.path, folder / "work", environment={"I2MOE_LOG_LEVEL": "DEBUG", "I2MOE_ACCESS_LOG": "1"}
    ) as server:
        yield server


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Watched]:
    """The page with its first answer."""
    with browser.page(f"{server.url}/") as watched:
        wait_for_result(watched)
        yield watched


def wait_for_result(watched: Watched) -> None:
    watched.page.locator("#result:not([aria-busy]) .score").wait_for()


def change(watched: Watched, label: str, value: str) -> None:
    """Type another value, and wait until the answer to it is there."""
    watched.page.get_by_label(label, exact=True).fill(value)
    wait_for_result(watched)


def predictions_asked(watched: Watched) -> list[Any]:
    """What was sent to /predict, in order."""
    return [json.loads(request.post_data) for request in watched.requests if request.url.endswith("/predict")]


def test_the_example_is_answered_at_once(page: Watched) -> None:
    """The risk computed by hand, its band, the summary, what cannot be ruled out, every expert with sign, share and weight."""
    result = page.text("#result")
    assert "51 % risk of death within one year" in result
    assert "high" in page.text(".score .band")
    assert "the strongest evidence, labs on its own" in page.text(".summary")
    assert "Cannot be ruled out: alive and dead (90 % coverage, guaranteed for patients like those of training)." in result
    assert "The model does not commit itself" in page.text(".flags")
    assert page.page.locator(".experts > li").count() == 4
    first = page.text(".experts > li:first-child")
    assert "labs on its own strongest unique:labs" in " ".join(first.split())
    assert "+0.8 towards dead, 38 % of all evidence" in first
    assert "weight 0.4; alone it would say a risk of 50 %" in first
    assert "A weight is not an importance" in result
    assert re.search(r"labs\.crea\s+\+1\.2 towards dead", first)
    assert NOTICE in result
    assert page.text("#spoken").startswith("Risk of death within one year: 51 %, high.")


def test_the_patient_is_placed_among_held_out_patients(page: Watched) -> None:
    """Per expert a range of contributions and a violin of weights, each with its figures in words and the patient's mark."""
    compared = page.page.locator("#compared")
    assert "4 patients of the test data" in compared.inner_text()
    assert compared.locator("svg.range").count() == compared.locator("svg.violin").count() == 4
    assert compared.locator("svg path.now").count() == 8
    assert NOTICE in compared.inner_text()


def test_what_if_shows_the_change_from_the_baseline(page: Watched) -> None:
    """An edit is answered without a button; undoing it leads back; a new baseline is compared with from then on."""
    change(page, "crea", "6")
    page.page.locator(".change").wait_for()
    assert page.text(".change") == "+15 points against 51 % before"
    assert "labs.crea: 4 \u2192 6" in page.text("#changes")
    assert "(+0.8 before)" in page.text(".experts > li:first-child")
    assert "15 points" in page.text("#spoken")
    page.page.get_by_role("button", name="Compare with this from now on").click()
    page.page.locator(".change").wait_for(state="detached")
    change(page, "crea", "4")
    page.page.locator(".change").wait_for()
    assert page.text(".change").endswith("points against 66 % before")
    page.page.get_by_role("button", name="Undo all").click()
    page.page.get_by_text("as before, 66 %", exact=True).wait_for()
    assert page.page.get_by_label("crea", exact=True).input_value() == "6"


def test_a_label_that_turns_is_not_compared_expert_by_expert(page: Watched) -> None:
    """Contributions are towards the predicted label: with another label the old ones would mean the opposite."""
    change(page, "crea", "1")
    page.page.locator(".change").wait_for()
    assert "towards alive" in page.text(".experts")
    assert "before)" not in page.text(".experts")


def test_what_is_missing_or_remarkable_is_told(page: Watched) -> None:
    """An emptied field is not known; a value beyond training is marked at its field and in the result."""
    change(page, "sod", "")
    page.page.get_by_text("labs.sod", exact=True).wait_for()
    change(page, "age", "130")
    page.page.get_by_text("history.age 130 is outside the range seen in training (18 to 100)").wait_for()
    assert page.page.get_by_text("outside the range seen in training", exact=True).count() == 1


def test_of_several_answers_the_last_counts(page: Watched) -> None:
    """An answer that comes late is another record's: it is dropped, and until the last is there no result stands as current."""
    held: list[Any] = []
    page.page.route("**/predict", lambda route: held.append(route) if not held else route.continue_())
    page.page.get_by_label("crea", exact=True).fill("9")
    page.page.wait_for_timeout(500)
    assert held
    assert page.page.locator("#result").get_attribute("aria-busy") == "true"
    change(page, "crea", "6")
    page.page.locator(".change").wait_for()
    held[0].fulfill(json={"predictions": [], "request_id": "late"})
    page.page.wait_for_timeout(200)
    assert page.text(".change") == "+15 points against 51 % before"
    assert not page.page.locator(".problem").count()


def test_edits_in_quick_succession_are_one_question(page: Watched) -> None:
    """Typing does not ask for every key."""
    before = len(predictions_asked(page))
    page.page.get_by_label("crea", exact=True).press_sequentially("12345", delay=20)
    page.page.locator(".change").wait_for()
    assert len(predictions_asked(page)) == before + 1


def test_features_can_be_left_out(page: Watched) -> None:
    """The slower part has a switch, and without it the service is not asked for it."""
    assert predictions_asked(page)[-1]["explain"] == "features"
    page.page.get_by_label("Name the values behind each expert (slower)").uncheck()
    page.page.get_by_text("Values behind it").first.wait_for(state="detached")
    assert predictions_asked(page)[-1]["explain"] is True


def test_a_modality_can_be_taken_away(page: Watched) -> None:
    """The example without labs is one of the choices."""
    page.page.get_by_label("Record", exact=True).select_option(label="The example without labs")
    page.page.get_by_role("button", name="Load").click()
    page.page.get_by_role("heading", name="Not known").wait_for()
    assert page.text(".remarks") == "labs"
    assert page.page.get_by_label("crea", exact=True).input_value() == ""


@pytest.mark.parametrize(
    "pasted",
    [
        {"labs": {"crea": 6, "sod": 140}, "history": {"age": 70, "sex": "male"}},
        {"instances": [{"labs": [6, 140], "history": [70, 1]}], "explain": True},
        [{"labs": {"crea": 6, "sod": 140.0}, "history": {"age": 70, "sex": True and "male"}}],
    ],
    ids=["record", "request with flat vectors", "list"],
)
def test_a_record_can_be_pasted(page: Watched, pasted: object) -> None:
    """A record, a whole request or a list; flat vectors come apart into fields."""
    paste(page, json.dumps(pasted))
    page.page.get_by_text("66 % risk of death").wait_for()
    assert page.page.get_by_label("crea", exact=True).input_value() == "6"
    assert page.page.get_by_label("sex", exact=True).input_value() == "male"


def paste(watched: Watched, text: str) -> None:
    watched.page.locator("details:has(#pasted)").evaluate("(e) => { e.open = true }")
    watched.page.get_by_label("One record, or a request with several, as JSON").fill(text)
    watched.page.get_by_role("button", name="Use this").click()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{crea: 1}", "This is not JSON."),
        ("3", "Expected a record"),
        ("[]", "Expected a record"),
        ('{"labs": {"crea": 1e999}}', "A number is too large."),
    ],
)
def test_what_cannot_be_read_is_refused_here(page: Watched, text: str, message: str) -> None:
    """In words that repeat nothing of it, and no result stays that would be another record's."""
    paste(page, text)
    page.page.get_by_role("alert").get_by_text(message).wait_for()
    assert not page.page.locator("#result").is_visible()
    assert page.text("#glance") == ""


def test_a_refusal_leads_to_its_fields(page: Watched) -> None:
    """Every place of a 422 is named; those that are fields are marked and lead there; the result is gone until it is mended."""
    paste(page, json.dumps({"labs": {"crea": "much", "unheard": 1}, "history": {"age": 50}}))
    page.page.get_by_role("alert").get_by_text("must be a number, found a string").first.wait_for()
    alert = page.text("#problem")
    assert "labs.unheard is not a feature of labs" in alert
    assert "INVALID_INPUT" in alert
    assert not page.page.locator("#result").is_visible()
    page.page.get_by_role("button", name="labs.crea").click()
    crea = page.page.get_by_label("crea", exact=True)
    assert crea.evaluate("(e) => e === document.activeElement")
    assert crea.get_attribute("aria-invalid") == "true"
    page.complaints[:] = [text for text in page.complaints if "422" not in text]  # Chromium itself tells of every 4xx


def test_a_field_that_is_no_number_is_told_before_it_is_sent(page: Watched) -> None:
    """A decimal comma never becomes another number or a missing value."""
    before = len(predictions_asked(page))
    page.page.get_by_label("crea", exact=True).fill("1,4")
    page.page.get_by_role("alert").get_by_text("labs.crea must be a number, with a point for decimals").first.wait_for()
    assert not page.page.locator("#result").is_visible()
    assert len(predictions_asked(page)) == before
    change(page, "crea", "1.4")
    assert not page.page.locator(".problem").count()


@pytest.mark.parametrize(
    ("status", "code", "retry_after", "told"),
    [(503, "OVERLOADED", "1", "Try again in 1 s."), (504, "TIMEOUT", None, "too slow"), (500, "INTERNAL", None, "too slow")],
)
def test_failures_of_the_service_are_told(page: Watched, status: int, code: str, retry_after: str | None, told: str) -> None:
    """The sentence, the code and the request id; when to try again where the service says so."""
    body = {"error": "too slow", "code": code, "detail": [], "request_id": "r-1"}
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    page.page.route("**/predict", lambda route: route.fulfill(status=status, json=body, headers=headers))
    page.page.get_by_label("crea", exact=True).fill("3")
    page.page.get_by_role("alert").get_by_text(f"{code}, request r-1").wait_for()
    assert told in page.text("#problem")
    assert not page.page.locator("#result").is_visible()
    page.complaints[:] = [text for text in page.complaints if str(status) not in text]


def test_a_service_that_is_gone_is_told(page: Watched) -> None:
    """Neither an old result nor silence."""
    page.page.route("**/predict", lambda route: route.abort())
    page.page.get_by_label("crea", exact=True).fill("3")
    page.page.get_by_role("alert").get_by_text("The service cannot be reached.").wait_for()
    page.complaints[:] = [text for text in page.complaints if "ERR_FAILED" not in text]


def test_everything_works_with_the_keyboard_alone(page: Watched) -> None:
    """From the top: the skip link, the choice of a record, a pasted record, a what-if and undoing it; focus is always seen."""
    keyboard = page.page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(40):
            keyboard.press("Tab")
            if page.page.evaluate("(s) => document.activeElement.matches(s)", selector):
                assert page.page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
                return
        raise AssertionError(f"no way to {selector}")

    tab_to(".skip")
    keyboard.press("Enter")
    assert page.page.evaluate("() => document.activeElement.id") == "result"
    page.page.evaluate("() => { document.activeElement.blur(); document.querySelector('.skip').focus() }")
    tab_to("#source")
    keyboard.press("ArrowDown")
    tab_to("#chooser button")
    keyboard.press("Enter")
    page.page.get_by_role("heading", name="Not known").wait_for()
    tab_to("#choose summary")
    keyboard.press("Enter")
    tab_to("#pasted")
    keyboard.type('{"labs": {"crea": 4, "sod": 140}, "history": {"age": 70, "sex": "male"}}')
    tab_to("#paster button")
    keyboard.press("Enter")
    page.page.get_by_text("51 % risk").wait_for()
    tab_to("#value-0-0")
    keyboard.press("Control+A")
    keyboard.type("6")
    page.page.get_by_text("+15 points").first.wait_for()
    page.page.evaluate("() => document.querySelector('#record').scrollIntoView()")
    page.page.locator("#changes button").first.focus()
    keyboard.press("Enter")
    page.page.get_by_text("as before, 51 %", exact=True).wait_for()
    assert page.page.evaluate("() => document.activeElement.id") == "result"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_can_be_read_by_everyone(browser: Browser, server: Server, scheme: str, width: int) -> None:
    """Labels, names, order, contrast and width in both palettes, on a phone and a desk, with a result and with a refusal."""
    with browser.page(f"{server.url}/", width=width, scheme=scheme) as watched:
        wait_for_result(watched)
        change(watched, "crea", "60")
        watched.page.locator(".change").wait_for()
        assert_accessible(watched.page, min_texts=80)
        watched.page.get_by_label("crea", exact=True).fill("x")
        watched.page.locator(".problem").wait_for()
        assert_accessible(watched.page, min_texts=30)


def test_the_audit_finds_what_is_wrong(page: Watched) -> None:
    """An unnamed control, a heading out of order, a faint text: or the audit would always be silent."""
    page.page.evaluate("""() => {
      const faint = Object.assign(document.createElement("h5"), { textContent: "faint" });
      faint.style.setProperty("color", "#bbbbbb");
      document.querySelector("main").append(document.createElement("input"), faint);
    }""")
    assert len([text for text in page.page.evaluate(STRUCTURE) if text.startswith(("no label", "a heading"))]) == 2
    assert [text for text in page.page.evaluate(CONTRAST)["found"] if "faint" in text]


def test_colours_are_never_alone(page: Watched) -> None:
    """Evidence against a label is hatched and lies left of the axis, and the sign stands beside it."""
    change(page, "age", "20")
    page.page.locator(".change").wait_for()
    for bar in page.page.locator(".experts > li > svg.bar").all():
        rect = bar.locator("rect")
        sign = bar.locator("xpath=following-sibling::p[1]").inner_text()[0]
        assert sign in "+\u2212"
        assert (rect.get_attribute("fill") == "url(#hatch)") == (sign == "\u2212")
        assert (float(rect.get_attribute("x")) < 200) == (sign == "\u2212")


def test_it_prints_with_the_notice_on_every_sheet(page: Watched) -> None:
    """In its margin, and beside the score; controls that do nothing on paper are left out; black on white in any palette."""
    page.page.emulate_media(media="print", color_scheme="dark")
    sheets = "() => [...document.styleSheets[0].cssRules].filter((r) => r instanceof CSSPageRule).map((r) => r.cssText)"
    assert f'content: "{NOTICE}"' in page.page.evaluate(sheets)[0]
    assert NOTICE in page.text("#result")
    assert not page.page.get_by_role("button", name="Load").is_visible()
    assert page.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.page.evaluate(CONTRAST)["found"] == []
    assert page.page.pdf(format="A4").startswith(b"%PDF-")


def test_a_patient_leaves_no_trace(page: Watched, server: Server) -> None:
    """No value in an address, a store or the log; nothing is sent but to this service; browsers are told to remember nothing."""
    paste(page, json.dumps({"id": "ZQX7731", "labs": {"crea": 7.7319731, "sod": 140}}))
    page.page.get_by_role("heading", name="Result for ZQX7731").wait_for()
    urls = {request.url for request in page.requests} | {page.page.url}
    assert all(url.startswith((server.url, "data:")) and "?" not in url for url in urls)
    assert page.page.url == f"{server.url}/"
    stored = "async () => [localStorage.length, sessionStorage.length, document.cookie, (await indexedDB.databases()).length]"
    assert page.page.evaluate(stored) == [0, 0, "", 0]
    assert "ZQX7731" not in server.log
    assert "7.731" not in server.log
    assert {form.get_attribute("autocomplete") for form in page.page.locator("form").all()} == {"off"}


def test_the_page_and_the_card_lead_to_each_other(page: Watched) -> None:
    """A person finds the card from the page and the page from the card, and both are silent and can be read."""
    page.page.get_by_role("link", name="Model card").click()
    page.page.get_by_role("heading", name="Model card: tiny").wait_for()
    for media in ("screen", "print"):
        page.page.emulate_media(media=media)
        assert_accessible(page.page, min_texts=80)
    page.page.emulate_media(media="screen")
    page.page.get_by_role("link", name="Try it").click()
    wait_for_result(page)


@pytest.mark.parametrize(
    ("task", "infos", "expected"),
    [
        (STAGES, None, ["71 % stage: AD", "CN", "MCI", "9 %", "21 %", "Cannot be ruled out: AD", "away from AD"]),
        (GENRES, None, ["70 % genre: comedy", "Probability of each label", "Surely present: comedy", "33 %"]),
        (DAYS, None, ["-0.0445 length of stay in days", "Interval: -2.54 to 2.46", "the average of 5"]),
        (BINARY, SINGLE, ["67 % risk of death", "One network for all modalities"]),
    ],
    ids=["multiclass", "multilabel", "regression", "single expert"],
)
def test_every_kind_of_task_is_shown(
    browser: Browser, tmp_path: Path, task: TaskInfo, infos: tuple[ExpertInfo, ...] | None, expected: list[str]
) -> None:
    """In its own words, with codes, text and arrays in the form, and a change after an edit."""
    bundle = write_task_bundle(tmp_path / "bundle", task, infos=infos)
    with serving_here(bundle.path) as url, browser.page(f"{url}/", width=360) as watched:
        wait_for_result(watched)
        result = watched.text("#result")
        assert [text for text in expected if text not in result] == []
        assert watched.page.locator("#compared").is_visible() == (infos is None)
        for label, value in (("dx", "I10|E11"), ("note", "no fever")):
            change(watched, label, value)
        watched.page.get_by_role("button", name="Take scan out").click()
        watched.page.get_by_text("image.scan: an array \u2192 not known").wait_for()
        watched.page.locator(".change").wait_for()
        assert "image" in watched.text(".remarks")
        assert_accessible(watched.page, min_texts=40)


def test_names_that_are_markup_are_inert(browser: Browser, tmp_path: Path) -> None:
    """Features, units, labels, bands, the outcome, the version, the card and an id are shown as text, whatever they hold."""
    bundle = write_task_bundle(tmp_path / "bundle", hostile_task(), label=MARKUP)
    with serving_here(bundle.path) as url, browser.page(f"{url}/") as watched:
        wait_for_result(watched)
        watched.page.get_by_label(f"crea{MARKUP}").fill("3")
        watched.page.locator("#changes li").wait_for()
        for place in ("#title", "#about", "#result", "#record", "#changes", "#result-title"):
            assert MARKUP in watched.text(place), place
        watched.page.get_by_label(f"crea{MARKUP}").fill("x")
        watched.page.locator(".problem").wait_for()
        assert MARKUP in watched.text("#problem")
        assert watched.page.evaluate("() => document.querySelectorAll('img').length") == 0
        assert watched.page.evaluate("() => document.querySelectorAll('script').length") == 1
        watched.page.goto(f"{url}/model-card")
        assert MARKUP in watched.text("main")
        assert watched.page.evaluate("() => document.querySelectorAll('img, script').length") == 0
        assert watched.page.evaluate("() => window.hacked") is None


def test_the_policy_stops_what_would_get_in(page: Watched) -> None:
    """Were markup ever made of data, its scripts would not run: the browser itself refuses them, and this file would see it."""
    page.page.evaluate("(text) => { document.querySelector('main').insertAdjacentHTML('beforeend', text) }", MARKUP)
    page.page.wait_for_timeout(300)
    assert page.page.evaluate("() => window.hacked") is None
    assert any("script-src" in text for text in page.complaints)
    page.complaints.clear()


def test_a_service_without_a_model_says_why(browser: Browser, tmp_path: Path) -> None:
    """The reason and when it is asked again; nothing to fill in before there is a model."""
    with serving_here(tmp_path / "nowhere") as url, browser.page(f"{url}/") as watched:
        watched.page.get_by_role("alert").get_by_text("expected a bundle, or a folder of bundles, found nothing").wait_for()
        assert "Try again in 5 s." in watched.text("#problem")
        assert not watched.page.locator("#choose").is_visible()
        watched.complaints[:] = [text for text in watched.complaints if "503" not in text]


def test_a_service_with_keys_asks_for_one(browser: Browser, tiny_path: Path, tmp_path: Path) -> None:
    """A wrong key is told, a right one opens the page; it is in no address, no storage and no log of the page."""
    token, lines = new_key("clinic", ["predict", "explain"])
    (tmp_path / "keys.toml").write_text(lines)
    with serving_here(tiny_path, api_keys=tmp_path / "keys.toml") as url, browser.page(f"{url}/") as watched:
        key = watched.page.get_by_label("Key or access token for this service")
        key.wait_for()
        assert "only those who have a key or an access token" in watched.text("#about")
        assert not watched.page.locator("#record").is_visible()
        for entered in ("i2moe_wrong", token):
            key.fill(entered)
            watched.page.keyboard.press("Enter")
        wait_for_result(watched)
        assert not key.is_visible()
        assert "risk of death within one year" in watched.text("#result")
        assert not [request.url for request in watched.requests if token in request.url]
        watched.assert_silent("401")
        watched.complaints.clear()
        assert watched.page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])") == '[{},{},""]'
