"""POST /fhir/RiskAssessment/$evaluate: FHIR in, FHIR out."""

from typing import Any

import pytest

from tests.service.api.in_process import Client
from tests.service.clinical.clinical_bundle import observation, patient, searchset
from tests.service.clinical.fhir_check import assert_fhir
from tests.tiny_bundle import EXAMPLE_RISK

PATH = "/fhir/RiskAssessment/$evaluate"


def evaluated(client: Client, *resources: dict[str, Any]) -> dict[str, Any]:
    """The RiskAssessment of these resources."""
    response = client.request("POST", PATH, json=searchset(*resources), headers={"Content-Type": "application/fhir+json"})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert_fhir(answer)
    return answer


def test_a_bundle_is_answered_with_a_risk_assessment_that_refers_to_it(client: Client) -> None:
    """Subject and basis are the resources that were sent; what was not used is in the notes."""
    odd = observation("2951-2", 140, "furlong", id="odd")
    answer = evaluated(client, patient(), observation("2160-0", 4, "mg/dL"), observation("2951-2", 140, "mmol/L"), odd)
    assert answer["subject"] == {"reference": "Patient/p1", "type": "Patient"}
    assert answer["basis"] == [
        {"reference": "Observation/o-2160-0", "display": "labs.crea"},
        {"reference": "Observation/o-2951-2", "display": "labs.sod"},
        {"reference": "Patient/p1", "display": "history.age, history.sex"},
    ]
    assert answer["prediction"][0]["probabilityDecimal"] == pytest.approx(100 * EXAMPLE_RISK, abs=0.01)
    assert any(note["text"].startswith("Not used: Observation/odd (labs.sod)") for note in answer["note"])


def test_the_patient_may_be_known_from_subjects_alone(client: Client) -> None:
    """Observations of one patient need no Patient resource."""
    assert evaluated(client, observation("2160-0", 4, "mg/dL"))["subject"]["reference"] == "Patient/p1"


STRANGER = observation("2160-0", 4, "mg/dL", subject={"reference": "Patient/p2"}, id="other")


@pytest.mark.parametrize(
    ("sent", "status", "text"),
    [
        ({"resourceType": "Patient"}, 422, "must be Bundle"),
        (searchset(), 422, "must be about one patient"),
        (searchset(observation("2160-0", 4, "mg/dL"), STRANGER), 422, "must be about one patient"),
        (searchset(patient(), patient(id="p2")), 422, "must be about one patient"),
        (
            searchset(patient(birthDate=None, gender=None), observation("2160-0", 4, "furlong")),
            422,
            "no value that the model knows",
        ),
        (searchset(observation("2160-0", 4, "furlong")), 422, "furlong is no UCUM code"),
    ],
)
def test_refusals_are_operation_outcomes_with_their_reasons(client: Client, sent: Any, status: int, text: str) -> None:
    """No Bundle, no patient or several, nothing usable and why."""
    response = client.request("POST", PATH, json=sent)
    assert response.status_code == status
    assert response.headers["content-type"].startswith("application/fhir+json")
    assert_fhir(response.json())
    assert any(text in issue["diagnostics"] for issue in response.json()["issue"]), response.text


def test_unknown_fhir_paths_are_told_in_fhir(client: Client) -> None:
    """A client of FHIR can read that there is nothing."""
    response = client.get("/fhir/metadata")
    assert response.status_code == 404
    assert response.json()["issue"][0]["code"] == "not-found"
