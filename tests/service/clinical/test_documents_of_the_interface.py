"""/docs.json, docs/clinical.md and docs/fhir say what the code does."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from service.api.openapi import build_openapi
from service.clinical.__main__ import main, profiles
from service.clinical.analytes import ANALYTES, analyte_of, with_siblings
from service.clinical.examples import example_resources
from service.clinical.extensions import EXPERT, ON_ASSESSMENT, ON_PREDICTION, Extension
from service.clinical.openapi import with_clinical
from service.clinical.settings import ClinicalSettings
from tests.service.api.in_process import Client
from tests.service.clinical.clinical_bundle import clinical_schema
from tests.service.clinical.fhir_check import assert_fhir
from tests.service.clinical.test_record import EVERYTHING, NOW, mapped
from tests.tiny_bundle import EXAMPLE_RISK, tiny_example

PAGE = Path("docs/clinical.md")


@pytest.fixture(scope="module")
def document(client: Client) -> dict[str, Any]:
    """/docs.json of the clinical bundle."""
    answer: dict[str, Any] = client.get("/docs.json").json()
    return answer


def check(document: dict[str, Any], name: str, instance: Any) -> None:
    """Hold `instance` against a schema of the document."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(instance)


def example_of(document: dict[str, Any], path: str) -> Any:
    """The example of a path's body."""
    ((_, content),) = document["paths"][path]["post"]["requestBody"]["content"].items()
    return content["examples"]["example"]["value"]


def test_the_examples_work(client: Client, document: dict[str, Any]) -> None:
    """What the document offers to try is valid by its own schema and gets the model's own answer to its example."""
    hook = example_of(document, "/cds-services/{id}")
    check(document, "HookRequest", hook)
    answer = client.request("POST", "/cds-services/tiny-patient-view", json=hook)
    check(document, "Cards", answer.json())
    (card,) = answer.json()["cards"]
    assert card["extension"]["i2moe"]["probability"] == pytest.approx(EXAMPLE_RISK, abs=1e-4)
    told = example_of(document, "/cds-services/{id}/feedback")
    check(document, "FeedbackRequest", told)
    assert client.request("POST", "/cds-services/tiny-patient-view/feedback", json=told).status_code == 200
    bundle = example_of(document, "/fhir/RiskAssessment/$evaluate")
    assert_fhir(bundle)
    assert client.request("POST", "/fhir/RiskAssessment/$evaluate", json=bundle).status_code == 200


def test_answers_and_errors_are_described(client: Client, document: dict[str, Any]) -> None:
    """Discovery by its schema; 401, 404 and 412 by their codes; FHIR beside JSON at /predict."""
    check(document, "Discovery", client.get("/cds-services").json())
    responses = document["paths"]["/cds-services/{id}"]["post"]["responses"]
    for status, code in (("401", "UNAUTHORIZED"), ("404", "NOT_FOUND"), ("412", "DATA_MISSING"), ("422", "INVALID_INPUT")):
        assert f"`{code}`" in responses[status]["description"]
    assert "application/fhir+json" in document["paths"]["/predict"]["post"]["responses"]["200"]["content"]
    refusal = document["paths"]["/fhir/RiskAssessment/$evaluate"]["post"]["responses"]["422"]
    assert set(refusal["content"]) == {"application/fhir+json"}


def test_without_a_model_there_is_no_example() -> None:
    """The routes are described all the same."""
    document = with_clinical(build_openapi(None), None)
    assert "examples" not in json.dumps(document["paths"]["/cds-services/{id}"]["post"]["requestBody"])


def test_an_example_record_comes_back_through_fhir() -> None:
    """Record to resources to record: nothing is lost but a birth date's hours, for every kind of feature."""
    record = {
        "labs": {
            "crea": 1.4,
            "meanbp": 90,
            "flag": "1",
            "age": 60.0,
            "sex": "female",
            "dx": "icd10:I50.9|icd9:428.0",
            "note": "pain",
        }
    }
    found = mapped(EVERYTHING, *_about_p1(example_resources(record, EVERYTHING, now=NOW))).record["labs"]
    assert found.pop("age") == pytest.approx(60.0, abs=0.01)
    assert {**found, "age": 0} == {**record["labs"], "dx": ["icd10:I50.9", "icd9:428.0"], "age": 0}
    for resource in example_resources(tiny_example(), clinical_schema(), now=NOW):
        assert_fhir(resource)


def _about_p1(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    text = json.dumps(resources).replace("Patient/example", "Patient/p1").replace('"id": "example"', '"id": "p1"')
    found: list[dict[str, Any]] = json.loads(text)
    return found


def test_the_definitions_of_extensions_are_shipped_and_valid(tmp_path: Path) -> None:
    """docs/fhir holds what the code writes: StructureDefinitions that a library of FHIR takes."""
    main([str(tmp_path)])
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == dict(profiles()) == {path.name: path.read_text() for path in Path("docs/fhir").glob("*.json")}
    for text in written.values():
        assert_fhir(json.loads(text))


def test_a_definition_names_every_part_with_its_type() -> None:
    """Parts of parts included."""
    (text,) = [text for name, text in profiles() if EXPERT.name in name]
    elements = {element["id"]: element for element in json.loads(text)["differential"]["element"]}
    assert elements["Extension.url"]["fixedUri"] == EXPERT.url
    assert elements["Extension.extension:weight.value[x]"]["type"] == [{"code": "decimal"}]
    assert elements["Extension.extension:weight"]["min"] == 1
    assert elements["Extension.extension:feature.extension:attribution.url"]["fixedUri"] == "attribution"
    assert elements["Extension.value[x]"]["max"] == "0"


def names(extension: Extension, prefix: str = "") -> list[str]:
    """An extension's name and those of its parts: expert, expert.weight, expert.feature.name."""
    own = f"{prefix}{extension.name}"
    return [own, *(name for part in extension.parts for name in names(part, f"{own}."))]


def test_the_page_lists_every_extension_setting_and_analyte() -> None:
    """And no other."""
    page = PAGE.read_text()
    told = re.findall(r"^\| `([a-z-]+(?:\.[a-z-]+)*)` \|", page, flags=re.MULTILINE)
    assert told == [name for extension in (*ON_ASSESSMENT, *ON_PREDICTION) for name in names(extension)]
    rows = dict(re.findall(r"^\| `(I2MOE_CDS_\w+)` \|[^|]*\| (.*) \|$", page, flags=re.MULTILINE))
    assert rows == {f"I2MOE_CDS_{name.upper()}": field.description for name, field in ClinicalSettings.model_fields.items()}
    analytes = re.findall(
        r"^\| ([A-Za-z ]+) \| ([0-9-, ]*) \| ([0-9-, ]*) \| ([0-9.]*) \| ([0-9]*) \|$", page, flags=re.MULTILINE
    )
    assert analytes == [
        (a.name, ", ".join(a.by_mass), ", ".join(a.by_amount), f"{a.molar_mass or ''}", f"{a.valence or ''}") for a in ANALYTES
    ]


def test_siblings_measure_the_same_substance_the_other_way() -> None:
    """Own codes first and in their order; none that measures the same way in another specimen."""
    assert with_siblings(("2160-0",)) == ("2160-0", "14682-9")
    assert with_siblings(("2345-7", "2339-0")) == ("2345-7", "2339-0", "14749-6", "15074-8")
    assert with_siblings(("14682-9",)) == ("14682-9", "2160-0", "38483-4")
    assert with_siblings(("2951-2", "8867-4")) == ("2951-2", "8867-4")
    codes = [code for analyte in ANALYTES for code in (*analyte.by_mass, *analyte.by_amount)]
    assert len(set(codes)) == len(codes)
    assert all(analyte_of(code) is not None for code in codes)


@pytest.mark.parametrize("code", [code for analyte in ANALYTES for code in (*analyte.by_mass, *analyte.by_amount)])
def test_every_code_has_its_check_digit(code: str) -> None:
    """LOINC's own (mod 10, Luhn): a typing error is not a code."""
    number, _, digit = code.partition("-")
    doubled = [int(d) * (2 if i % 2 == 0 else 1) for i, d in enumerate(reversed(number))]
    assert (10 - sum(d // 10 + d % 10 for d in doubled) % 10) % 10 == int(digit)
