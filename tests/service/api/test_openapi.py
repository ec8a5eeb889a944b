import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from service.api import errors
from service.api.openapi import build_openapi, feature_schema, record_schema
from service.bundle.schema import ArrayFeature, CodesFeature, Feature, TextFeature
from tests.service.api.in_process import Client, serving
from tests.service.bundle.test_validity import WHOLE, checked_bundle
from tests.tiny_bundle import POISON, tiny_example, tiny_schema

ELSEWHERE = {errors.PreconditionError, errors.ReloadFailedError}  # of other routes alone


@pytest.fixture(scope="module")
def document(client: Client) -> dict[str, Any]:
    """/docs.json of the tiny bundle."""
    answer: dict[str, Any] = client.get("/docs.json").json()
    return answer


def check(document: dict[str, Any], name: str, instance: Any) -> None:
    """Hold `instance` against a schema of the document."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(instance)


def references(node: Any) -> set[str]:
    """Every $ref below a node."""
    if isinstance(node, list):
        return {ref for item in node for ref in references(item)}
    if isinstance(node, dict):
        here = {node["$ref"]} if "$ref" in node else set()
        return here | {ref for item in node.values() for ref in references(item)}
    return set()


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    """The document stands on its own, and each of its schemas is a schema."""
    schemas = document["components"]["schemas"]
    assert references(document) <= {f"#/components/schemas/{name}" for name in schemas}
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_route_is_documented(client: Client, document: dict[str, Any]) -> None:
    """Nothing is served that the document does not name."""
    served = {route.path for route in client.app.routes}  # type: ignore[attr-defined]
    assert served | {"/livez", "/readyz"} == set(document["paths"])


def test_every_error_is_documented(document: dict[str, Any]) -> None:
    """Each status and code that /predict may refuse with is in the document, with the error's schema."""
    responses = document["paths"]["/predict"]["post"]["responses"]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ApiError)]
    elsewhere = {errors.ApiError, errors.NotFoundError, errors.MethodNotAllowedError, errors.OtherHttpError, *ELSEWHERE}
    for kind in set(kinds) - elsewhere:
        response = responses[str(kind.status)]
        assert f"`{kind.code}`" in response["description"]
        assert response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorResponse"}
    assert set(responses) == {"200", *(str(kind.status) for kind in set(kinds) - elsewhere)}


def test_the_examples_work(client: Client, document: dict[str, Any]) -> None:
    """What the document offers to try is valid by its own schema and gets an answer."""
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    check(document, "PredictRequest", body["examples"]["many"]["value"])
    check(document, "Record", body["examples"]["one"]["value"])
    for example in body["examples"].values():
        assert client.post(json=example["value"]).status_code == 200


def test_answers_are_what_the_document_promises(poisoned_path: Path) -> None:
    """Good, partly bad and refused answers all validate."""
    with serving(poisoned_path) as client:
        document = client.get("/docs.json").json()
        instances = [tiny_example(), {"labs": {"crea": "x"}}, {"labs": {"crea": POISON}}, {"id": 5, "labs": {"crea": 99}}]
        answer = client.predict({"instances": instances})
        assert [p["status"] for p in answer["predictions"]] == ["ok", "error", "error", "ok"]
        check(document, "PredictResponse", answer)
        check(document, "PredictResponse", client.predict({"instances": [tiny_example()], "explain": False}))
        check(document, "ErrorResponse", client.post(json={}).json())
        check(document, "ModelResponse", client.get("/model").json())
        check(document, "ExplanationsResponse", client.get("/explanations").json())


def test_features_carry_kind_unit_range_and_vocabulary(document: dict[str, Any]) -> None:
    """Who integrates the service finds what each feature means, without asking."""
    modalities = document["components"]["schemas"]["Record"]["properties"]
    crea = modalities["labs"]["anyOf"][0]["properties"]["crea"]
    assert crea == {
        "x-kind": "numeric",
        "type": ["number", "null"],
        "description": "a number in mg/dL; training saw 0.5 to 10",
        "x-unit": "mg/dL",
        "x-training-range": [0.5, 10.0],
    }
    sex = modalities["history"]["anyOf"][0]["properties"]["sex"]
    assert sex["x-vocabulary"] == ["female", "male"]
    assert modalities["labs"]["anyOf"][1]["maxItems"] == 2


def test_a_model_that_rejects_missing_modalities_requires_them() -> None:
    """`required` follows the schema's rule."""
    assert record_schema(tiny_schema(missing="reject"))["required"] == ["labs", "history"]
    assert record_schema(tiny_schema())["required"] == []


@pytest.mark.parametrize(
    ("feature", "good", "bad"),
    [
        (CodesFeature(name="dx", vocabulary=("I10", "E11")), ["I10"], 3),
        (CodesFeature(name="dx", vocabulary=("I10", "E11")), "I10|E11", [1]),
        (TextFeature(name="note", vocabulary=("pain",), idf=(1.0,)), "no pain", 4),
        (ArrayFeature(name="image", shape=(1, 2)), [[0.5, None]], "x"),
    ],
)
def test_every_kind_of_feature_has_a_schema(feature: Feature, good: object, bad: object) -> None:
    """Codes, texts and arrays are described as what they accept."""
    validator = jsonschema.Draft202012Validator(feature_schema(feature))
    assert validator.is_valid(good)
    assert validator.is_valid(None)
    assert not validator.is_valid(bad)


def test_without_a_model_the_document_is_still_whole() -> None:
    """Before a model is ready the routes and errors are described, and records are any objects."""
    document = build_openapi(None)
    check(document, "PredictRequest", {"instances": [{"anything": 1}]})
    assert "examples" not in document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]


def test_the_version_is_semantic(document: dict[str, Any]) -> None:
    """The HTTP interface has its own version."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", document["info"]["version"])


def test_the_model_page_holds_card_schema_and_example(client: Client) -> None:
    """GET /model answers what a reader needs to judge and to call the model."""
    page = client.get("/model").json()
    assert page["model_card"]["intended_use"] == "tests"
    assert page["example"]["record"] == tiny_example()
    assert [modality["name"] for modality in page["features"]["modalities"]] == ["labs", "history"]
    assert page["metrics"]["test"]["auroc"]["value"] == 0.8


def test_the_explanations_page_holds_the_dataset_level_interpretation(client: Client) -> None:
    """GET /explanations answers how experts behave over held-out rows, and the distributions to compare with."""
    page = client.get("/explanations").json()
    assert [expert["name"] for expert in page["explanation"]["experts"]][-2:] == ["synergy", "redundancy"]
    assert page["explanation"]["experts"][0]["weight"]["mean"] == pytest.approx(0.4)
    assert set(page["reference"]) == {"num_rows", "prediction", "expert_weights", "missing_rate"}


def test_the_explanations_page_says_how_far_to_trust_them(tmp_path: Path) -> None:
    """What the bundle says of its explanations, as the document promises it; null where nothing was checked."""
    with serving(checked_bundle(tmp_path, WHOLE)) as client:
        page = client.get("/explanations").json()
        check(client.get("/docs.json").json(), "ExplanationsResponse", page)
    assert page["validity"]["deletion"]["score"] == {"value": 0.8, "low": 0.75, "high": 0.85}
    assert page["validity"]["seeds"]["seeds"] == [0, 1, 2]
    with serving(checked_bundle(tmp_path / "other", None)) as client:
        assert client.get("/explanations").json()["validity"] is None
