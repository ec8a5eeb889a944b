"""GET /model-card: what it says, to whom in which form, and what it honestly does not say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from service.api.model_card import prefers_html
from service.api.source_attributes import groups, tell_groups
from service.bundle.card import NOT_RECORDED, NOT_STATED, ModelCard, unstated_card
from service.bundle.manifest import Manifest, UncertaintyMeasured
from tests.service.api.error_shape import assert_error
from tests.service.api.in_process import Client, serving
from tests.service.page.bundles import MARKUP, hostile_task, write_task_bundle
from tests.tiny_bundle import TINY_UNCERTAINTY, tiny_manifest
from training.recipe import load_recipe

REQUIRED = ("intended_use", "population", "exclusions", "limits", "data", "licence")
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return tiny_manifest({})


def attributes(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Every attribute by its key."""
    return {k: a for group in tell_groups(manifest).values() for k, a in group["attributes"].items()}


def with_card(manifest: Manifest, **card: str) -> Manifest:
    """The manifest with other words on its card."""
    return manifest.model_copy(update={"model_card": manifest.model_card.model_copy(update=card)})


def card(client: Client, accept: str | None = None) -> Any:
    """The answer to GET /model-card."""
    return client.request("GET", "/model-card", headers={} if accept is None else {"Accept": accept})


def test_there_are_the_regulations_31_attributes_in_9_groups() -> None:
    """As many in each group as 45 CFR 170.315(b)(11)(iv)(B)(1) to (9) has, with keys of their own."""
    assert [len(group.attributes) for group in groups()] == [4, 4, 2, 4, 2, 4, 5, 4, 2]
    keys = [attribute.key for group in groups() for attribute in group.attributes]
    assert len(set(keys)) == 31


def test_an_attribute_names_its_paragraph(manifest: Manifest) -> None:
    """Group and item, so that a reader finds it in the regulation."""
    told = attributes(manifest)
    assert told["developer"]["citation"] == "45 CFR 170.315(b)(11)(iv)(B)(1)(i)"
    assert told["outcome_studies"]["citation"] == "45 CFR 170.315(b)(11)(iv)(B)(7)(v)"
    assert told["correction_schedule"]["citation"] == "45 CFR 170.315(b)(11)(iv)(B)(9)(ii)"


def test_what_nobody_said_is_told_as_not_provided(manifest: Manifest) -> None:
    """No text, and who could say it: the developer, or who uses the model on their own patients."""
    told = attributes(manifest)
    assert told["funding"] == {
        "citation": "45 CFR 170.315(b)(11)(iv)(B)(1)(ii)",
        "title": "Funding source of the technical implementation for the intervention(s) development",
        "status": "not provided",
        "text": None,
        "asked_of": "It is for the model's developer to say.",
    }
    assert told["local_validity"]["asked_of"] == "It is for the organisation that uses the model to measure, on its own patients."


@pytest.mark.parametrize("words", [NOT_STATED, NOT_RECORDED])
def test_words_that_stand_in_for_a_statement_are_none(manifest: Manifest, words: str) -> None:
    """A recipe without a card and a released checkpoint fill required places with words that say nothing."""
    told = attributes(with_card(manifest, intended_use=words))
    assert told["intended_use"]["status"] == "not provided"


def test_half_a_statement_is_told_as_half(manifest: Manifest) -> None:
    """A developer without an address; with one, all is said."""
    assert attributes(with_card(manifest, developer="A."))["developer"]["status"] == "partly provided"
    told = attributes(with_card(manifest, developer="A.", contact="a@example.org"))["developer"]
    assert (told["status"], told["text"], told["asked_of"]) == ("provided", "A. Contact: a@example.org", None)


def test_every_optional_word_of_the_card_has_a_place(manifest: Manifest) -> None:
    """What a recipe may say is said somewhere: no key of `[model_card]` is read and dropped."""
    for name in set(ModelCard.model_fields) - {"licence"}:
        told = attributes(with_card(manifest, **{name: "Words of nobody else."}))
        assert any("Words of nobody else." in (attribute["text"] or "") for attribute in told.values()), name


def test_figures_come_from_the_manifest(manifest: Manifest) -> None:
    """Metrics with their intervals and coverage as measured; not those on validation rows, which chose the model."""
    metrics = manifest.metrics | {"validation": {"auroc": manifest.metrics["test"]["auroc"].model_copy(update={"value": 0.999})}}
    measured = UncertaintyMeasured(
        split="test", num_rows=40, coverage=0.91, coverage_by_class={"alive": 0.95, "dead": 0.9}, abstain_rate=0.25, error=0.3
    )
    uncertainty = TINY_UNCERTAINTY.model_copy(update={"measured": measured})
    update = {"metrics": metrics, "uncertainty": uncertainty, "provenance": {"num_rows": {"test": 40}}}
    told = attributes(manifest.model_copy(update=update))["test_validity"]
    assert told["text"] == (
        "Test data, 40 rows: auroc 0.800 (95 % 0.750 to 0.850). Prediction sets or intervals held the truth in 91.0 % of 40 rows "
        "(alive 95.0 %, dead 90.0 %). The model abstained in 25.0 %."
    )
    assert attributes(manifest.model_copy(update={"metrics": {}}))["test_validity"]["status"] == "not provided"


def test_subgroups_that_nobody_measured_are_not_made_up(manifest: Manifest) -> None:
    """Training measures no subgroup, so fairness on test data is not provided unless the card says it."""
    assert attributes(manifest)["test_fairness"]["status"] == "not provided"


def test_the_output_is_described_by_the_task(manifest: Manifest) -> None:
    """What is predicted, the bands, and how sure: in the task's own words."""
    text = attributes(manifest)["output_value"]["text"]
    assert text.startswith("The calibrated probability of death within one year (label dead, against alive).")
    assert "Risk bands: low below 0.2, moderate below 0.5, high below 1." in text


def test_the_card_is_json_for_programs(client: Client) -> None:
    """As the API's description promises it, without the bundle's recipe and without its example."""
    response = card(client, "application/json")
    assert (response.headers["content-type"], response.headers["vary"]) == ("application/json", "Accept")
    document = client.get("/docs.json").json()
    schema = {"$ref": "#/components/schemas/ModelCardResponse", "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(response.json())
    told = response.json()
    assert told["notice"] == "Research use. Not for clinical decisions."
    assert sum(told["counts"].values()) == 31
    assert "No certification is claimed." in told["standard"]["status"]
    assert "example" not in told
    assert "recipe" not in told["provenance"]


def test_the_card_is_a_page_for_people(client: Client) -> None:
    """Every title and text of the JSON, with the notice, and the headers of a page."""
    told, response = card(client).json(), card(client, BROWSER)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert (response.headers["cache-control"], response.headers["vary"]) == ("no-store", "Accept")
    assert told["notice"] in response.text
    shown = response.text.replace("&#x27;", "'")
    for group in told["source_attributes"].values():
        assert group["title"] in shown
        for attribute in group["attributes"].values():
            assert attribute["title"] in shown
            assert (attribute["text"] or attribute["asked_of"]) in shown


@pytest.mark.parametrize(
    ("accept", "is_html"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/html", True),
        (BROWSER, True),
        ("text/html;q=0.5, application/json", False),
        ("application/json;q=0.5, text/*", True),
        ("text/html;q=0, */*", False),
        ("text/html;q=nonsense", False),
        ("TEXT/HTML", True),
        ("image/png", False),
        (";;,q=", False),
    ],
)
def test_the_form_is_what_the_caller_prefers(accept: str, is_html: bool) -> None:
    """The most specific range counts; a tie and what cannot be read mean JSON."""
    assert prefers_html(Headers({"accept": accept})) is is_html


@given(st.text(st.characters(max_codepoint=255)))
def test_any_accept_header_gets_one_of_two_forms(accept: str) -> None:
    """A header is read whatever it holds."""
    assert prefers_html(Headers(raw=[(b"accept", accept.encode("latin-1"))])) in {True, False}


def test_a_card_needs_a_model() -> None:
    """Before one is ready: the usual refusal, to browsers too."""
    with serving(None) as client:
        assert_error(card(client, BROWSER), 503, "MODEL_NOT_READY")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a bundle whose every word is markup."""
    folder = tmp_path_factory.mktemp("hostile") / "bundle"
    with serving(write_task_bundle(folder, hostile_task(), label=MARKUP).path) as client:
        yield client


def test_words_that_are_markup_stay_words(hostile: Client) -> None:
    """Labels, outcome, version, bands, features and the card's texts are escaped."""
    text = card(hostile, "text/html").text
    assert "<script" not in text
    assert "<img" not in text
    assert text.count("&lt;script&gt;") > 10


def test_an_unstated_card_says_nothing(manifest: Manifest) -> None:
    """A recipe without `[model_card]` provides what the task and the figures say, and nothing else."""
    told = attributes(manifest.model_copy(update={"model_card": unstated_card()}))
    assert {key for key, attribute in told.items() if attribute["status"] == "provided"} == {
        "output_value",
        "output_type",
        "test_validity",
    }


def test_a_card_has_no_empty_statement() -> None:
    """An empty text would be told as provided."""
    with pytest.raises(ValueError, match="at least 1 character"):
        ModelCard.model_validate(dict.fromkeys(REQUIRED, "x") | {"funding": ""})


def test_the_shipped_recipe_claims_no_more_than_is_true() -> None:
    """SUPPORT2: no clinical role, no contact, no funding, no external or local validation, no measured fairness."""
    shipped = load_recipe(Path("training/recipes/support2.toml")).model_card
    assert shipped.decision_role is not None
    assert shipped.decision_role.startswith("None.")
    absent = {name for name in ModelCard.model_fields if getattr(shipped, name) is None}
    assert {"contact", "funding", "external_validation", "external_validity", "fairness_measured", "local_validity"} <= absent
