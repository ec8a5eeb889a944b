"""Against a real `bentoml serve` process."""

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from tests.service.api.error_shape import assert_error
from tests.serving import Connection, Server, running_server
from tests.tiny_bundle import EXAMPLE_RISK, POISON, tiny_example

pytestmark = pytest.mark.slow
SENTINEL = "ZQX7731"  # stands for a patient's words
SENTINEL_NUMBER = 7.7319731  # and for a patient's number


@pytest.fixture(scope="module")
def server(poisoned_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service of the poisoned bundle that logs all it can."""
    environment = {"I2MOE_LOG_LEVEL": "DEBUG", "I2MOE_ACCESS_LOG": "1", "BENTOML_DEBUG": "true", "I2MOE_NO_SUCH": "1"}
    with running_server(poisoned_path, tmp_path_factory.mktemp("server"), environment=environment) as server:
        yield server


def test_a_patient_gets_the_answer_computed_by_hand(server: Server) -> None:
    """The whole way through BentoML gives the number from the pencil."""
    response = server.post("/predict", {"instances": [tiny_example()]})
    assert response.status_code == 200
    assert response.json()["predictions"][0]["probability"] == EXAMPLE_RISK
    assert response.headers["x-request-id"] == response.json()["request_id"]


def test_health_and_documents_are_served(server: Server) -> None:
    """BentoML's own routes and ours stand side by side; ours win at / and /docs.json."""
    assert server.get("/livez").status_code == server.get("/readyz").status_code == server.get("/healthz").status_code == 200
    assert server.get("/docs.json").json()["openapi"] == "3.1.0"
    assert server.get("/model").json()["model"]["name"] == "tiny"
    assert server.get("/").headers["content-type"] == "text/html; charset=utf-8"


def test_an_answer_arrives_whole(server: Server) -> None:
    """The first read of a client has head and body, for good and for bad requests."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for request in (b"GET /livez HTTP/1.1\r\nHost: t\r\n\r\n", b"GET /nowhere HTTP/1.1\r\nHost: t\r\n\r\n") * 20:
            connection.sendall(request)
            head, found, body = connection.recv(65536).partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            assert found
            assert len(body) == length > 0


def test_a_client_of_the_open_inference_protocol_is_served(server: Server) -> None:
    """Triton's own client: metadata, and inference in bytes both ways."""
    client = InferenceServerClient(server.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    described = client.get_model_metadata("tiny", "1.0.0")
    record = tiny_example()
    arrays = {"labs": np.float32([[*record["labs"].values()]]), "history": np.float32([[record["history"]["age"], 1.0]])}
    inputs = [InferInput(i["name"], [1, i["shape"][1]], i["datatype"]) for i in described["inputs"]]
    for tensor in inputs:
        tensor.set_data_from_numpy(arrays[tensor.name()], binary_data=True)
    names = [output["name"] for output in described["outputs"]]
    result = client.infer("tiny", inputs, outputs=[InferRequestedOutput(name, binary_data=True) for name in names])
    assert result.as_numpy("prediction")[0, 1] == pytest.approx(EXAMPLE_RISK, abs=1e-6)
    weights, logits = result.as_numpy("expert_weights"), result.as_numpy("expert_logits")
    np.testing.assert_allclose((weights[:, :, None] * logits).sum(axis=1), result.as_numpy("logits"), atol=1e-5)
    with pytest.raises(InferenceServerException, match="there is no model of this name"):
        client.get_model_metadata("other")
    client.close()


def test_the_start_is_told_in_one_line_and_odd_variables_are_named(server: Server) -> None:
    """The log has model, provider and settings, and a warning for what no setting reads."""
    (line,) = [line for line in server.log.splitlines() if "ready after" in line]
    assert all(part in line for part in ("name=tiny", "version=1.0.0", "provider=CPUExecutionProvider", "max_batch_size=64"))
    assert "I2MOE_NO_SUCH is not a setting" in server.log


def test_errors_of_bentoml_have_our_shape_too(server: Server) -> None:
    """Unknown paths and wrong methods, on our routes and on BentoML's."""
    assert_error(server.get("/nope"), 404, "NOT_FOUND")
    assert_error(server.get("/predict"), 405, "METHOD_NOT_ALLOWED")
    assert_error(server.post("/readyz", {}), 405, "METHOD_NOT_ALLOWED")
    assert_error(server.post("/predict", {}), 422, "INVALID_INPUT")


def test_two_hundred_concurrent_clients_share_batches_without_a_failure(server: Server) -> None:
    """Of a thousand requests by two hundred clients every one gets its own right answer, and batches hold many."""

    async def client(number: int) -> list[float]:
        connection = await Connection.open(server)
        told = []
        for _ in range(5):
            status, answer = await connection.post("/predict", {"id": number, "labs": {"crea": 1 + number % 7}})
            assert status == 200, answer
            (prediction,) = answer["predictions"]
            assert prediction["id"] == number
            told.append(prediction["probability"])
        connection.close()
        return told

    async def scenario() -> list[list[float]]:
        return await asyncio.gather(*[client(number) for number in range(200)])

    alone = [server.post("/predict", {"labs": {"crea": 1 + i}}).json()["predictions"][0]["probability"] for i in range(7)]
    count, total = server.metric("i2moe_batch_size_count"), server.metric("i2moe_batch_size_sum")
    for number, told in enumerate(asyncio.run(scenario())):
        assert told == pytest.approx([alone[number % 7]] * 5, abs=2e-6)
    samples = server.metric("i2moe_batch_size_sum") - total
    assert samples == 1000
    assert samples / (server.metric("i2moe_batch_size_count") - count) > 2


def test_a_body_of_fifty_megabytes_is_413_and_the_connection_survives(server: Server) -> None:
    """The service says so, keeps no copy, and answers the next request."""
    with httpx.Client(base_url=server.url, timeout=30.0) as http:
        assert_error(http.post("/predict", content=b" " * 50_000_000), 413, "BODY_TOO_LARGE")
        assert http.post("/predict", json=tiny_example()).status_code == 200


def test_a_declared_large_body_is_refused_without_reading_it(server: Server) -> None:
    """The refusal comes before the first byte of the body."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_no_patient_value_reaches_log_metrics_or_error(server: Server) -> None:
    """Good, bad, unreadable and failing requests: at DEBUG level nothing repeats what was sent."""
    number = str(SENTINEL_NUMBER)
    good = {"id": SENTINEL, "labs": {"crea": SENTINEL_NUMBER, "sod": 9000 + SENTINEL_NUMBER}, "history": {"sex": SENTINEL}}
    assert server.post("/predict", good).status_code == 200
    refused = [
        f'{{"labs": {{"crea": "{SENTINEL}", "sod": "{number}"}}}}',
        f'{{"instances": [{{"id": {{"{number}": 1}}, "labs": [{number}]}}]}}',
        f'{{"labs": {{"crea": {number}, {SENTINEL}}}}}',
        f'{{"instances": "{SENTINEL}", "explain": {number}}}',
        f'{{"labs": {{"crea": {POISON}, "sod": {number}}}}}',
        f"{SENTINEL} {number}",
    ]
    for body in refused:
        response = httpx.post(f"{server.url}/predict", content=body, headers={"X-Request-ID": f"{SENTINEL}/{number}"})
        assert response.status_code >= 400
        assert SENTINEL not in response.text
        assert number not in response.text
    for path in (f"/patients/{SENTINEL}", f"/predict?patient={SENTINEL}"):
        assert SENTINEL not in server.get(path).text
    for place in (server.log, server.get("/metrics").text):
        assert SENTINEL not in place
        assert "7.7319" not in place
        assert "9007.7" not in place
    assert "inference failed for 1 samples together: InferenceError" in server.log


@pytest.mark.parametrize(
    ("bundle", "environment", "reason"),
    [
        ("nowhere", {}, "expected a bundle, or a folder of bundles, found nothing"),
        ("nowhere", {"I2MOE_MAX_BATCH_SIZE": "many"}, "I2MOE_MAX_BATCH_SIZE: "),
    ],
)
def test_what_cannot_be_served_keeps_the_process_alive_and_unready(
    tmp_path: Path, bundle: str, environment: dict[str, str], reason: str
) -> None:
    """/livez is 200, /readyz and /predict are 503 with the reason, and the log has it in one line."""
    with running_server(tmp_path / bundle, tmp_path / "work", ready=False, environment=environment) as server:
        time.sleep(0.2)
        assert server.get("/livez").status_code == 200
        assert reason in assert_error(server.get("/readyz"), 503, "MODEL_NOT_READY")["error"]
        assert reason in assert_error(server.post("/predict", tiny_example()), 503, "MODEL_NOT_READY")["error"]
        errors = [line for line in server.log.splitlines() if "ERROR" in line]
        assert len(errors) == 1
        assert reason in errors[0]


def test_sigterm_under_load_answers_every_accepted_request(tiny_path: Path, tmp_path: Path) -> None:
    """Each request that reached the service was answered with 200 and its client got it; then the process ended."""

    async def client(server: Server) -> list[int]:
        connection, statuses = await Connection.open(server), []
        with contextlib.suppress(OSError, EOFError):  # until the service accepts no more
            while True:
                status, _ = await connection.post("/predict", {"instances": [tiny_example()] * 8})
                statuses.append(status)
        connection.close()
        return statuses

    async def scenario(server: Server) -> list[int]:
        clients = [asyncio.create_task(client(server)) for _ in range(16)]
        await asyncio.sleep(1.0)
        assert await asyncio.to_thread(server.terminate) == 0
        return [status for told in await asyncio.gather(*clients) for status in told]

    with running_server(tiny_path, tmp_path, environment={"I2MOE_ACCESS_LOG": "1"}) as server:
        statuses = asyncio.run(scenario(server))
        answered = re.findall(r"i2moe\.access: POST /predict (\d+)", server.log)
        assert len(statuses) > 16
        assert set(statuses) == {200}
        assert answered == ["200"] * len(statuses)
        assert "i2moe.runtime: closed" in server.log


def test_two_workers_are_scraped_as_one(tiny_path: Path, tmp_path: Path) -> None:
    """With two serving processes /metrics adds both up, whichever answers."""
    with running_server(tiny_path, tmp_path, environment={"I2MOE_WORKERS": "2"}) as server:
        for _ in range(20):  # a new connection each
            assert server.post("/predict", tiny_example()).status_code == 200
        assert server.metric('i2moe_samples_total{outcome="ok"}') == 20
        assert server.metric("i2moe_ready") == 1
        assert "pid=" not in server.get("/metrics").text
