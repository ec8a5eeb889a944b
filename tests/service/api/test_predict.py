import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from service.api.app import build_app
from service.api.runtime import Runtime
from service.api.settings import Settings
from tests.service.api.in_process import Client, running, serving
from tests.tiny_bundle import EXAMPLE_RISK, POISON, tiny_example


def risk_of(logit: float) -> float:
    """The tiny model's risk for a mixture logit, alive being 0."""
    return 1 / (1 + math.exp(1 - 0.5 * logit))


@pytest.fixture(scope="module")
def fragile(poisoned_path: Path) -> Any:
    """A client of a model that fails on one creatinine."""
    with serving(poisoned_path, max_batch_size=8) as client:
        yield client


def test_the_example_gets_the_answer_computed_by_hand(client: Client) -> None:
    """Every number of the answer is the one worked out with a pencil in tests/tiny_bundle.py."""
    (prediction,) = client.predict({"instances": [tiny_example()]})["predictions"]
    assert prediction == {
        "id": "stay-1",
        "status": "ok",
        "label": "dead",
        "probability": EXAMPLE_RISK,
        "probabilities": {"alive": pytest.approx(1 - EXAMPLE_RISK, abs=1e-6), "dead": EXAMPLE_RISK},
        "risk_band": "high",
        "explanation": prediction["explanation"],
        "missing": [],
        "warnings": [],
    }
    explanation = prediction["explanation"]
    assert explanation["dominant"] == "unique:labs"
    assert explanation["agreement"] == 0.75
    assert "51 %" in explanation["summary"]
    assert "death within one year" in explanation["summary"]
    by_hand = [  # weight x logit, of 2.1 in all
        ("unique:labs", "uniqueness", "labs", 0.4, 2.0, 0.8),
        ("unique:history", "uniqueness", "history", 0.3, 2.0, 0.6),
        ("synergy", "synergy", None, 0.2, 3.0, 0.6),
        ("redundancy", "redundancy", None, 0.1, 1.0, 0.1),
    ]
    for expert, (name, kind, modality, weight, logit, contribution) in zip(explanation["experts"], by_hand, strict=True):
        assert expert == {
            "name": name,
            "kind": kind,
            "modality": modality,
            "weight": weight,
            "probability": pytest.approx(risk_of(logit), abs=1e-5),
            "logits": [0.0, pytest.approx(logit, abs=1e-5)],
            "contribution": pytest.approx(contribution, abs=1e-5),
            "contribution_share": pytest.approx(contribution / 2.1, abs=1e-5),
        }


def test_probability_is_the_risk_whatever_the_label(client: Client) -> None:
    """For a patient who is predicted to live, `probability` is still that of death."""
    (prediction,) = client.predict({"labs": {"crea": 1}})["predictions"]
    assert prediction["label"] == "alive"
    assert prediction["probability"] == pytest.approx(risk_of(-0.5), abs=1e-5)  # 0.4 x -1 + 0.2 x -1 + 0.1 x 1
    assert prediction["risk_band"] == "moderate"


def test_the_envelope_names_model_request_and_timing(client: Client) -> None:
    """The answer says which model gave it, to which request, and where the time went."""
    answer = client.predict({"instances": [tiny_example()]})
    assert list(answer) == ["model", "request_id", "notice", "predictions", "timing_ms"]
    bundle = client.runtime.require_model().bundle
    assert answer["model"] == {
        "name": "tiny",
        "version": "1.0.0",
        "sha256": bundle.sha256,
        "provider": "CPUExecutionProvider",
    }
    timing = answer["timing_ms"]
    assert 0 < timing["inference"] < timing["total"]
    assert 0 <= timing["queue"] < timing["total"]
    assert timing["batch_size"] == 1


def test_a_bare_record_is_answered_like_a_list_of_one(client: Client) -> None:
    """A record without an envelope gets the same prediction as the same record inside one."""
    bare, enveloped = client.predict(tiny_example()), client.predict({"instances": [tiny_example()]})
    assert bare["predictions"] == enveloped["predictions"]


def test_a_bare_record_may_ask_for_no_explanation(client: Client) -> None:
    """`explain` beside a bare record's modalities is understood."""
    (prediction,) = client.predict({**tiny_example(), "explain": False})["predictions"]
    assert "explanation" not in prediction
    assert prediction["probability"] == EXAMPLE_RISK


def test_flat_vectors_and_named_features_agree(client: Client) -> None:
    """A modality's flat vector, with categories as positions, is the same record."""
    flat = {"id": "stay-1", "labs": [4.0, 140.0], "history": [70.0, 1]}
    assert client.predict(flat)["predictions"] == client.predict(tiny_example())["predictions"]


def test_explanations_can_be_left_out(client: Client) -> None:
    """With `explain: false` there is no explanation, and everything else is there."""
    (prediction,) = client.predict({"instances": [tiny_example()], "explain": False})["predictions"]
    assert list(prediction) == ["id", "status", "label", "probability", "probabilities", "risk_band", "missing", "warnings"]


@pytest.mark.parametrize("instance_id", ["stay-1", "", 17, None])
def test_ids_come_back_as_they_were_sent(client: Client, instance_id: object) -> None:
    """Strings stay strings and integers integers; the same id may be sent twice."""
    record = {**tiny_example(), "id": instance_id}
    answer = client.predict({"instances": [record, record]})
    assert [prediction["id"] for prediction in answer["predictions"]] == [instance_id, instance_id]


def test_many_instances_keep_their_order(client: Client) -> None:
    """A hundred records, more than a batch, are answered in order."""
    records = [{"id": i, "labs": {"crea": i / 10}} for i in range(5, 105)]
    predictions = client.predict({"instances": records})["predictions"]
    assert [prediction["id"] for prediction in predictions] == list(range(5, 105))
    expected = [risk_of(0.6 * (i / 10 - 2) + 0.1) for i in range(5, 105)]
    assert [prediction["probability"] for prediction in predictions] == pytest.approx(expected, abs=1e-5)


def test_missing_and_remarkable_values_are_told(client: Client) -> None:
    """Absent features and modalities, values out of range and unknown categories are named."""
    record = {"labs": {"crea": 14.5}, "history": {"sex": "unheard of"}}
    (prediction,) = client.predict(record)["predictions"]
    assert prediction["missing"] == ["labs.sod", "history"]
    assert any("labs.crea" in warning and "0.5 to 10" in warning for warning in prediction["warnings"])
    assert any(warning.startswith("history.sex") for warning in prediction["warnings"])


def test_a_bad_instance_does_not_fail_the_others(client: Client) -> None:
    """Among good instances a bad one gets `status: error` with the path into the body."""
    bad = {"id": "b", "labs": {"crea": "high", "potassium": 4}}
    answer = client.predict({"instances": [tiny_example(), bad, 7, {"labs": {"crea": 1}}]})
    first, second, third, fourth = answer["predictions"]
    assert first["probability"] == EXAMPLE_RISK
    assert second["id"] == "b"
    assert second["status"] == "error"
    assert second["error"]["code"] == "INVALID_INPUT"
    locs = {tuple(place["loc"]) for place in second["error"]["detail"]}
    assert locs == {("instances", 1, "labs", "crea"), ("instances", 1, "labs", "potassium")}
    assert third["id"] is None
    assert third["error"]["detail"] == [
        {"loc": ["instances", 2], "type": "record_type", "msg": "must be an object of modalities, found a number"},
    ]
    assert fourth["status"] == "ok"
    assert answer["timing_ms"]["batch_size"] == 2


def test_when_every_instance_is_bad_the_request_is_refused(client: Client) -> None:
    """Nothing to answer is 422, with every place of every instance."""
    body = client.refused(422, "INVALID_INPUT", json={"instances": [{"labs": {"crea": "x"}}, {"history": {"age": True}}]})
    assert [place["loc"] for place in body["detail"]] == [["instances", 0, "labs", "crea"], ["instances", 1, "history", "age"]]


def test_a_bare_record_is_refused_with_paths_into_itself(client: Client) -> None:
    """The path starts where the client's own object does."""
    body = client.refused(422, "INVALID_INPUT", json={"labs": {"crea": "x"}})
    assert [place["loc"] for place in body["detail"]] == [["labs", "crea"]]


def test_a_sample_the_model_fails_on_does_not_fail_the_others(fragile: Client) -> None:
    """When the graph answers NaN for one of three, the two others keep their right answers."""
    poison = {"id": "p", "labs": {"crea": POISON}}
    answer = fragile.predict({"instances": [tiny_example(), poison, {"labs": {"crea": 1}}]})
    first, second, third = answer["predictions"]
    assert first["probability"] == EXAMPLE_RISK
    assert second == {
        "id": "p",
        "status": "error",
        "error": {"code": "INFERENCE_FAILED", "message": "the model failed on this instance", "detail": []},
    }
    assert third["probability"] == pytest.approx(risk_of(-0.5), abs=1e-5)


def test_when_the_model_fails_on_every_instance_it_is_an_internal_error(fragile: Client) -> None:
    """A request that gets no answer at all is 500, not a success full of errors."""
    fragile.refused(500, "INFERENCE_FAILED", json={"labs": {"crea": POISON}})


def test_a_poisoned_neighbour_in_another_request_does_no_harm(poisoned_path: Path) -> None:
    """Concurrent requests share batches; a failing one fails alone."""

    async def scenario() -> None:
        runtime = Runtime(Settings(bundle=poisoned_path, num_threads=1))
        async with running(build_app(lambda: runtime)) as http:
            records = [{"labs": {"crea": POISON if i % 7 == 0 else 1 + i / 10}} for i in range(40)]
            responses = await asyncio.gather(*[http.post("/predict", json=record) for record in records])
        for i, response in enumerate(responses):
            if i % 7 == 0:
                assert response.status_code == 500
            else:
                expected = risk_of(0.6 * (i / 10 - 1) + 0.1)
                assert response.json()["predictions"][0]["probability"] == pytest.approx(expected, abs=1e-5)

    asyncio.run(scenario())


def test_concurrent_requests_share_batches(tiny_path: Path) -> None:
    """Requests that arrive together are scored together, and each gets its own answer."""

    async def scenario() -> None:
        runtime = Runtime(Settings(bundle=tiny_path, num_threads=1))
        async with running(build_app(lambda: runtime)) as http:
            responses = await asyncio.gather(*[http.post("/predict", json={"id": i, "labs": {"crea": 1}}) for i in range(60)])
        answers = [response.json() for response in responses]
        assert [answer["predictions"][0]["id"] for answer in answers] == list(range(60))
        assert max(answer["timing_ms"]["batch_size"] for answer in answers) > 1

    asyncio.run(scenario())


@pytest.mark.parametrize("given", ["abc-DEF_1.2", "x" * 128])
def test_a_plain_request_id_is_kept(client: Client, given: str) -> None:
    """The caller's X-Request-ID is in the body and the header."""
    response = client.post(json=tiny_example(), headers={"X-Request-ID": given})
    assert response.json()["request_id"] == response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "a;b", "a/b"])
def test_a_request_id_that_could_harm_a_log_is_replaced(client: Client, given: str) -> None:
    """A long or strange X-Request-ID gives way to a new one, in answers and in errors."""
    response = client.post(json=tiny_example(), headers={"X-Request-ID": given})
    assert response.json()["request_id"] == response.headers["x-request-id"] != given
    assert len(response.json()["request_id"]) == 32
    assert len(client.refused(400, "INVALID_JSON", content=b"{", headers={"X-Request-ID": given})["request_id"]) == 32


@pytest.mark.parametrize(
    "declared", ["application/json", "application/x-www-form-urlencoded", "text/plain", "", "application/json; charset=utf-8"]
)
def test_json_is_understood_whatever_it_is_called(client: Client, declared: str) -> None:
    """`curl -d` declares a form; the body is JSON all the same."""
    response = client.post(content=b'{"labs": {"crea": 1}}', headers={"Content-Type": declared})
    assert response.status_code == 200


def test_other_numbers_than_plain_ones_do_not_confuse(client: Client) -> None:
    """Integers, exponents and negative zero are numbers."""
    response = client.post(content=b'{"labs": {"crea": 4e0, "sod": 140}, "history": {"age": 7E+1, "sex": "male"}}')
    assert response.json()["predictions"][0]["probability"] == EXAMPLE_RISK
