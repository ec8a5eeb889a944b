from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.service.api.in_process import Client, serving
from tests.tiny_attribution import write_attributed_bundle
from tests.tiny_bundle import POISON, tiny_example


@pytest.fixture(scope="module")
def attributed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a model with an attribution graph, which fails on one creatinine."""
    bundle = write_attributed_bundle(tmp_path_factory.mktemp("attributed") / "bundle", poisoned=True)
    with serving(bundle.path, max_batch_size=4) as client:
        yield client


def features(*instances: Any) -> dict[str, Any]:
    return {"instances": list(instances), "explain": "features"}


def assert_adds_up(expert: dict[str, Any]) -> None:
    told = sum(feature["attribution"] for feature in expert["features"]) + expert["rest"] + expert["base"] + expert["gap"]
    assert told == pytest.approx(expert["contribution"], abs=1e-5)


def test_every_expert_tells_the_features_that_drove_it(attributed: Client) -> None:
    """Names and attributions as worked out with a pencil in tests/tiny_attribution.py, the largest first, no zeros."""
    (prediction,) = attributed.predict(features(tiny_example()))["predictions"]
    told = {expert["name"]: expert for expert in prediction["explanation"]["experts"]}
    assert told["unique:labs"]["features"] == [{"name": "labs.crea", "attribution": pytest.approx(1.2, abs=1e-5)}]
    assert told["unique:labs"]["base"] == pytest.approx(-0.4, abs=1e-5)
    assert told["synergy"]["features"] == [
        {"name": "labs.crea", "attribution": pytest.approx(0.6, abs=1e-5)},
        {"name": "history.age", "attribution": pytest.approx(0.2, abs=1e-5)},
    ]
    assert (told["synergy"]["rest"], told["synergy"]["gap"]) == (0, 0)
    assert prediction["warnings"] == []


def test_the_sentence_names_the_leading_features(attributed: Client) -> None:
    """Within the strongest evidence, and never a value."""
    (prediction,) = attributed.predict(features(tiny_example()))["predictions"]
    assert "within it crea (towards dead) weighs most" in prediction["explanation"]["summary"]
    assert "4" not in prediction["explanation"]["summary"].replace("40 %", "").replace("4 experts", "").replace("38 %", "")


def test_attributions_add_up_towards_either_label(attributed: Client) -> None:
    """For dead and for alive: base, features, rest and gap are the contribution, whatever is missing."""
    low = {"labs": {"crea": 0.6, "sod": 150}, "history": {"age": 20}}
    answer = attributed.predict(features(tiny_example(), low, {"labs": {"sod": 130}}, {"history": {"sex": "male"}}, low))
    assert [p["label"] for p in answer["predictions"]] == ["dead", "alive", "alive", "alive", "alive"]
    for prediction in answer["predictions"]:
        for expert in prediction["explanation"]["experts"]:
            assert_adds_up(expert)
            told = {feature["name"] for feature in expert["features"]}
            assert not told & {name for name in prediction["missing"] if "." in name}
    assert answer["timing_ms"]["attribution"] > 0


def test_a_bad_instance_among_good_ones_is_refused_alone(attributed: Client) -> None:
    """Instances that do not fit get their problems, the others their features, each its own."""
    answer = attributed.predict(features(tiny_example(), {"labs": {"crea": "high"}}, {"id": 9, "labs": {"crea": 3}}))
    first, refused, third = answer["predictions"]
    assert refused["status"] == "error"
    assert third["id"] == 9
    values = [p["explanation"]["experts"][0]["features"][0]["attribution"] for p in (first, third)]
    sign = {"dead": 1, "alive": -1}[third["label"]]
    assert values == [pytest.approx(1.2, abs=1e-5), pytest.approx(sign * 0.8, abs=1e-5)]


def test_an_instance_whose_attribution_fails_keeps_its_prediction(attributed: Client) -> None:
    """It gets a warning in place of features, its neighbours get their features, and no value is told."""
    answer = attributed.predict(features({"labs": {"crea": POISON}}, tiny_example()))
    failed, other = answer["predictions"]
    assert failed["status"] == "ok"
    assert failed["warnings"] == ["the contributions could not be attributed to features"]
    assert "features" not in failed["explanation"]["experts"][0]
    assert "within it" not in failed["explanation"]["summary"]
    assert other["explanation"]["experts"][0]["features"][0]["name"] == "labs.crea"
    assert str(POISON) not in str(failed)


def test_true_and_false_mean_what_they_meant(attributed: Client) -> None:
    """Without being asked for there are no features, and nothing is spent on them."""
    before = attributed.metric('i2moe_attribution_seconds_count{provider="CPUExecutionProvider"}')
    explained = attributed.predict({"instances": [tiny_example()], "explain": True})
    assert "features" not in explained["predictions"][0]["explanation"]["experts"][0]
    assert "attribution" not in explained["timing_ms"]
    assert "explanation" not in attributed.predict({"instances": [tiny_example()], "explain": False})["predictions"][0]
    assert attributed.metric('i2moe_attribution_seconds_count{provider="CPUExecutionProvider"}') == before
    attributed.predict({**tiny_example(), "explain": "features"})
    assert attributed.metric('i2moe_attribution_seconds_count{provider="CPUExecutionProvider"}') == before + 1


def test_a_model_without_the_graph_says_so(client: Client) -> None:
    """422 at `explain`, in words that say what can be asked instead."""
    error = client.refused(422, "INVALID_INPUT", json=features(tiny_example()))
    assert error["detail"] == [{"loc": ["explain"], "type": "no_attribution", "msg": error["detail"][0]["msg"]}]
    assert "no graph that attributes contributions to features" in error["error"]


@pytest.mark.parametrize("value", ["feature", "Features", 1, 0, None, ["features"]])
def test_other_words_are_refused_without_being_repeated(attributed: Client, value: object) -> None:
    """One problem at `explain` that lists what is possible."""
    error = attributed.refused(422, "INVALID_INPUT", json={"instances": [tiny_example()], "explain": value})
    assert error["detail"] == [{"loc": ["explain"], "type": "explain_type", "msg": 'must be true, false or "features"'}]


def test_the_document_describes_the_answer(attributed: Client) -> None:
    """The answer with features is valid by the OpenAPI document, and so is the request."""
    document = attributed.get("/docs.json").json()
    request = features(tiny_example(), {"labs": {"crea": POISON}})
    for name, value in (("PredictRequest", request), ("PredictResponse", attributed.predict(request))):
        jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **document}).validate(value)


def test_attributions_of_one_request_larger_than_a_batch_keep_their_order(attributed: Client) -> None:
    """Nine instances in batches of four: each gets its own attribution."""
    values = [2.0 + i / 4 for i in range(9)]
    answer = attributed.predict(features(*({"labs": {"crea": value}, "history": {"age": 95, "sex": "male"}} for value in values)))
    found = [p["explanation"]["experts"][0]["features"][0]["attribution"] for p in answer["predictions"]]
    signs = [1 if p["label"] == "dead" else -1 for p in answer["predictions"]]
    assert found == [pytest.approx(sign * 0.4 * (value - 1), abs=1e-5) for sign, value in zip(signs, values, strict=True)]


def test_a_closed_service_answers_what_it_accepted(tmp_path: Path) -> None:
    """Closing a service with both batchers leaves nothing behind."""
    with serving(write_attributed_bundle(tmp_path / "bundle").path) as client:
        client.predict(features(tiny_example()))
        runtime = client.runtime
    assert runtime.reason == "the service is shutting down"
