"""The Open Inference Protocol: metadata, inference with JSON and with bytes, and what it refuses."""

import asyncio
import json
import time
from typing import Any

import numpy as np
import pytest

from service.api.app import build_app
from service.api.errors import InvalidInputError
from service.api.route_labels import INFER_ROUTE, PROTOCOL_ROUTE, route_label
from service.api.runtime import Runtime
from service.api.settings import Settings
from service.api.tensors import HEADER_LENGTH, OUTPUTS, parse_infer
from service.bundle.answers import Explained
from tests.service.api.error_shape import assert_error
from tests.service.api.in_process import Client, running, serving
from tests.tiny_bundle import EXAMPLE_RISK, EXPERTS, POISON, WEIGHTS, tiny_example, tiny_output, tiny_schema, write_tiny_bundle

INFER = "/v2/models/tiny/infer"
LABS = np.float32([[4.0, 140.0], [1.0, np.nan], [10.0, 170.0]])
HISTORY = np.float32([[70.0, 1.0], [np.nan, np.nan], [18.0, 0.0]])  # sex as its position in the vocabulary


def tensor(name: str, array: Any, *, data: Any = None, **changes: Any) -> dict[str, Any]:
    """An input with its numbers as JSON."""
    flat = [None if np.isnan(cell) else float(cell) for cell in np.ravel(array)] if data is None else data
    return {"name": name, "shape": list(np.shape(array)), "datatype": "FP32", "data": flat} | changes


def infer(client: Client, document: Any, binary: bytes | None = None, path: str = INFER) -> Any:
    """The response to a request, whose JSON part is followed by `binary`."""
    text = json.dumps(document).encode()
    headers = {} if binary is None else {HEADER_LENGTH: str(len(text))}
    return client.request("POST", path, content=text + (binary or b""), headers=headers)


def in_bytes(arrays: dict[str, Any], dtype: str = "<f4", **more: Any) -> tuple[dict[str, Any], bytes]:
    """A request with its numbers as bytes: the JSON part and what follows."""
    parts = [np.asarray(array, dtype).tobytes() for array in arrays.values()]
    datatype = {"<f4": "FP32", "<f8": "FP64"}[dtype]
    inputs = [
        {"name": n, "shape": list(a.shape), "datatype": datatype, "parameters": {"binary_data_size": len(p)}}
        for (n, a), p in zip(arrays.items(), parts, strict=True)
    ]
    return {"inputs": inputs, **more}, b"".join(parts)


def arrays_of(response: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Every output by name, whether its numbers came as JSON or as bytes."""
    assert response.status_code == 200, response.text
    length = int(response.headers.get(HEADER_LENGTH, len(response.content)))
    told, rest = json.loads(response.content[:length]), response.content[length:]
    arrays = {}
    for output in told["outputs"]:
        assert output["datatype"] == "FP32"
        if "data" in output:
            array = np.float32(output["data"])
        else:
            size = output["parameters"]["binary_data_size"]
            array, rest = np.frombuffer(rest[:size], "<f4"), rest[size:]
        arrays[output["name"]] = array.reshape(output["shape"])
    assert rest == b""
    return arrays


def test_the_server_and_its_model_are_described(client: Client) -> None:
    """Names, types and shapes of everything that goes in and out; health in the protocol's own paths."""
    server = client.get("/v2").json()
    assert (server["name"], server["extensions"]) == ("i2moe-service", ["binary_tensor_data"])
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    told = client.get("/v2/models/tiny/versions/1.0.0").json()
    assert told == client.get("/v2/models/tiny").json()
    assert (told["name"], told["versions"], told["platform"]) == ("tiny", ["1.0.0"], "onnxruntime_onnx")
    assert told["inputs"] == [{"name": n, "datatype": "FP32", "shape": [-1, 2]} for n in ("labs", "history")]
    assert {output["name"]: output["shape"] for output in told["outputs"]} == {
        "prediction": [-1, 2],
        "logits": [-1, 2],
        "expert_weights": [-1, 4],
        "expert_logits": [-1, 4, 2],
        "contribution": [-1, 4],
        "contribution_share": [-1, 4],
    }


def test_tensors_get_the_answers_of_records(client: Client) -> None:
    """The same numbers as /predict, unrounded, with all of the experts'."""
    response = infer(client, {"id": "batch-1", "inputs": [tensor("labs", LABS), tensor("history", HISTORY)]})
    told = response.json()
    assert (told["model_name"], told["model_version"], told["id"]) == ("tiny", "1.0.0", "batch-1")
    arrays = arrays_of(response)
    assert tuple(arrays) == tuple(OUTPUTS)
    expected = tiny_output(labs=LABS, history=HISTORY)
    for name in ("prediction", "logits", "expert_weights", "expert_logits"):
        np.testing.assert_allclose(arrays[name], getattr(expected, name), atol=1e-5)
    assert arrays["prediction"][0, 1] == pytest.approx(EXAMPLE_RISK, abs=1e-6)
    assert arrays["expert_weights"][0] == pytest.approx(WEIGHTS)
    (prediction,) = client.predict({"instances": [tiny_example()]})["predictions"]
    told_by_name = {expert["name"]: expert for expert in prediction["explanation"]["experts"]}
    for name in ("contribution", "contribution_share"):
        assert arrays[name][0] == pytest.approx([told_by_name[expert][name] for expert in EXPERTS], abs=1e-6)


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_bytes_are_answered_as_json_is(client: Client, dtype: str) -> None:
    """Numbers in bytes in, in bytes out, of both float types; mixed requests too."""
    plain = arrays_of(infer(client, {"inputs": [tensor("labs", LABS), tensor("history", HISTORY)]}))
    arrays = {"labs": LABS, "history": HISTORY}
    response = infer(client, *in_bytes(arrays, dtype, parameters={"binary_data_output": True}))
    assert response.headers["content-type"] == "application/octet-stream"
    found = arrays_of(response)
    for name in OUTPUTS:
        np.testing.assert_allclose(found[name], plain[name], atol=1e-6)
    document, binary = in_bytes({"labs": LABS}, dtype)
    document["inputs"].append(tensor("history", HISTORY))
    asked = [{"name": "expert_weights", "parameters": {"binary_data": True}}, {"name": "prediction"}]
    found = arrays_of(infer(client, document | {"outputs": asked}, binary))
    assert list(found) == ["expert_weights", "prediction"]
    np.testing.assert_allclose(found["prediction"], plain["prediction"], atol=1e-6)


def test_tensors_are_answered_without_a_list_of_numbers(tiny_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making lists of a batch is for those who read records: where it fails, tensors are answered and records are not."""

    def fail(self: Explained) -> None:
        raise RuntimeError("no lists today")

    monkeypatch.setattr(Explained, "_records", fail)
    with serving(tiny_path) as client:
        found = arrays_of(infer(client, *in_bytes({"labs": LABS, "history": HISTORY})))
        np.testing.assert_allclose(found["prediction"], tiny_output(labs=LABS, history=HISTORY).prediction, atol=1e-5)
        client.refused(500, "INFERENCE_FAILED", json={"instances": [tiny_example()]})


def test_tensors_and_records_that_share_a_batch_are_each_answered_as_alone(tiny_path: Any) -> None:
    """Arrays for the one, whole predictions for the other, with the same numbers."""
    records, tensors = {"instances": [tiny_example()]}, {"inputs": [tensor("labs", LABS), tensor("history", HISTORY)]}
    with serving(tiny_path) as client:
        told_alone, found_alone = client.predict(records), arrays_of(infer(client, tensors))
    runtime = Runtime(Settings(bundle=tiny_path, num_threads=1, max_wait_ms=1000, max_batch_size=4))

    async def together() -> list[Any]:
        async with running(build_app(lambda: runtime)) as http:
            return await asyncio.gather(http.post("/predict", json=records), http.post(INFER, json=tensors))

    told, found = asyncio.run(together())
    assert told.json()["timing_ms"]["batch_size"] == 4
    assert told.json()["predictions"] == told_alone["predictions"]
    for name, array in arrays_of(found).items():
        np.testing.assert_allclose(array, found_alone[name], atol=1e-6)


def test_a_modality_may_be_left_out(client: Client) -> None:
    """A model that knows missing modalities answers; the gap is counted for every record."""
    before = client.metric('i2moe_missing_modality_total{modality="history"}')
    found = arrays_of(infer(client, {"inputs": [tensor("labs", LABS)]}))
    expected = tiny_output(labs=LABS, history=np.full_like(LABS, np.nan))
    np.testing.assert_allclose(found["prediction"], expected.prediction, atol=1e-5)
    assert client.metric('i2moe_missing_modality_total{modality="history"}') == before + 3


def test_nested_numbers_are_flattened(client: Client) -> None:
    """As the protocol allows."""
    nested = [[None if np.isnan(cell) else float(cell) for cell in row] for row in LABS]
    flat, rows = (infer(client, {"inputs": [tensor("labs", LABS, **d)]}) for d in ({}, {"data": nested}))
    assert flat.json()["outputs"] == rows.json()["outputs"]


GOOD = tensor("labs", LABS)


@pytest.mark.parametrize(
    ("document", "loc", "told"),
    [
        ({"inputs": []}, ["inputs"], "at least 1 item"),
        ({"inputs": [GOOD], "output": []}, ["output"], "Extra inputs are not permitted"),
        ({"inputs": [GOOD, GOOD]}, ["inputs", 1, "name"], "one of labs, history, each once"),
        ({"inputs": [GOOD | {"name": "images"}]}, ["inputs", 0, "name"], "one of labs, history"),
        ({"inputs": [GOOD | {"datatype": "INT64"}]}, ["inputs", 0, "datatype"], "'FP32' or 'FP64'"),
        ({"inputs": [GOOD | {"shape": [3, 3]}]}, ["inputs", 0, "shape"], "must be [3, 2]"),
        ({"inputs": [GOOD, tensor("history", HISTORY[:2])]}, ["inputs", 1, "shape"], "must be [3, 2]"),
        ({"inputs": [{}] * 60}, ["inputs", 0, "name"], "Field required"),
        ({"inputs": [GOOD] * 65}, ["inputs"], "at most 64 items"),
        ({"inputs": [GOOD], "outputs": [{"name": "logits"}] * 2}, ["outputs"], "each output once"),
        ({"inputs": [GOOD], "k" * 100: 1}, ["k" * 64], "Extra inputs are not permitted"),
        ({"inputs": [GOOD | {"shape": [int("9" * 4300), 2]}]}, ["inputs", 0, "shape", 0], "less than 2147483648"),
        ({"inputs": [GOOD | {"shape": [6]}]}, ["inputs", 0, "shape"], "at least 2 items"),
        ({"inputs": [GOOD | {"data": [1.0]}]}, ["inputs", 0, "data"], "must hold 6 numbers, found 1"),
        ({"inputs": [GOOD | {"data": ["4"] * 6}]}, ["inputs", 0, "data"], "must hold numbers"),
        ({"inputs": [{**GOOD, "data": None}]}, ["inputs", 0, "data"], "or else a binary_data_size"),
        ({"inputs": [GOOD | {"parameters": {"binary_data_size": 24}}]}, ["inputs", 0, "data"], "and not both"),
        ({"inputs": [GOOD], "outputs": [{"name": "label"}]}, ["outputs", 0, "name"], "'prediction'"),
        ({"inputs": [tensor("labs", np.ones((9, 2)))]}, ["inputs", 0, "shape"], "at most 8 records, found 9"),
        ({"inputs": [GOOD | {"data": [1e39, *[1.0] * 5]}]}, ["inputs", 0, "data"], "finite numbers"),
        ({"inputs": [GOOD, tensor("history", [[50, 0], [50, 2], [50, 1]])]}, ["inputs", "history", 1, 1], "a position in the"),
        ({"inputs": [tensor("labs", [[1, 1], [np.nan, np.nan]])]}, ["inputs", 1], "has no value that the model knows"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_by_its_place(tiny_path: Any, document: Any, loc: list[Any], told: str) -> None:
    """422, with the path of the fault; never with its value."""
    with serving(tiny_path, max_instances=8) as client:
        body = assert_error(infer(client, document), 422, "INVALID_INPUT")
    assert body["detail"][0]["loc"] == loc
    assert told in body["detail"][0]["msg"]


def test_many_faults_do_not_make_a_long_answer() -> None:
    """Nor a long search: the first fault of a list ends it."""
    body = b'{"inputs": [' + b"{}," * 100_000 + b"{}]}"
    started = time.perf_counter()
    with pytest.raises(InvalidInputError) as caught:
        parse_infer(body, None, tiny_schema(), max_instances=8)
    assert len(caught.value.detail) <= 3
    assert time.perf_counter() - started < 1.0  # it took seconds, and half a gigabyte


def test_no_outputs_asked_for_are_all(client: Client) -> None:
    """An empty list asks for nothing in particular."""
    assert list(arrays_of(infer(client, {"inputs": [GOOD], "outputs": []}))) == list(OUTPUTS)


def test_bytes_must_be_as_many_as_was_said(client: Client) -> None:
    """Too few, too many, and a header beyond the body."""
    document, binary = in_bytes({"labs": LABS})
    for wrong in (binary[:-4], binary + b"\0" * 4):
        assert_error(infer(client, document, wrong), 422, "INVALID_INPUT")
    infinite = np.where(np.isnan(LABS), np.inf, LABS)
    body = assert_error(infer(client, *in_bytes({"labs": infinite})), 422, "INVALID_INPUT")
    assert (body["detail"][0]["loc"], body["detail"][0]["type"]) == (["inputs", "labs", 1, 1], "finite_number")
    for length in ("10000", "-1", "x", "9" * 5000):
        response = client.request("POST", INFER, content=b"{}", headers={HEADER_LENGTH: length})
        assert_error(response, 400, "INVALID_JSON")
    assert_error(client.request("POST", INFER, content=b"{"), 400, "INVALID_JSON")


def test_a_modality_that_is_required_must_be_there(tmp_path: Any) -> None:
    """A model that rejects records without a modality says which records lack it."""
    with serving(write_tiny_bundle(tmp_path / "strict", missing="reject").path) as client:
        body = assert_error(infer(client, {"inputs": [tensor("labs", LABS), tensor("history", HISTORY)]}), 422, "INVALID_INPUT")
        assert [place["loc"] for place in body["detail"]] == [["inputs", "history", 1]]
        body = assert_error(infer(client, {"inputs": [tensor("labs", LABS[:1])]}), 422, "INVALID_INPUT")
        assert [place["loc"] for place in body["detail"]] == [["inputs", "history", 0]]


def test_a_record_on_which_the_model_fails_fails_the_request(poisoned_path: Any) -> None:
    """Tensors have no place for an error beside numbers; records of /predict do."""
    with serving(poisoned_path) as client:
        labs = np.float32([[1.0, 140.0], [POISON, 140.0]])
        body = assert_error(infer(client, {"inputs": [tensor("labs", labs)]}), 500, "INFERENCE_FAILED")
        assert body["error"] == "the model failed on 1 of 2 records"
        assert client.metric('i2moe_samples_total{outcome="error"}') == 1


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/tiny/versions/2.0.0", "/v2/models/other/infer", "/v2/no"])
def test_other_models_are_not_found(client: Client, path: str) -> None:
    """Neither another name nor another version."""
    response = infer(client, {}, path=path) if path.endswith("infer") else client.get(path)
    assert_error(response, 404, "NOT_FOUND")


def test_nothing_is_served_without_a_model() -> None:
    """Live, not ready."""
    with serving(None) as client:
        assert client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/tiny", "/v2/models/tiny/ready"):
            assert_error(client.get(path), 503, "MODEL_NOT_READY")


def test_names_and_versions_in_paths_do_not_grow_the_metrics() -> None:
    """Two labels for all of the protocol."""
    assert {route_label(path) for path in ("/v2", "/v2/health/ready", "/v2/models/a", "/v2/models/b/ready")} == {PROTOCOL_ROUTE}
    assert {route_label(f"/v2/models/{name}/infer") for name in "ab"} == {INFER_ROUTE}
    assert route_label("/v2x") == "other"
