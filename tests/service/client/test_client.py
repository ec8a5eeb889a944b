"""The client against the service: in this process and as a real one."""

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.access.keys import new_key
from service.api.app import build_app
from service.api.errors import ApiError
from service.api.openapi import build_openapi
from service.api.runtime import Runtime
from service.api.settings import Settings
from service.client import (
    AnswerError,
    AsyncClient,
    Client,
    FailedPrediction,
    ForbiddenError,
    GivenUpError,
    InvalidInputError,
    NoAnswerError,
    NotFoundError,
    OutcomeItem,
    OverloadedError,
    Prediction,
    Retries,
    UnauthorizedError,
    calls,
    results,
)
from service.client.errors import kinds
from tests.service.api.in_process import running
from tests.serving import Server, running_server
from tests.tiny_bundle import EXAMPLE_RISK, TINY_UNCERTAINTY, tiny_example, write_tiny_bundle

ONCE = Retries(attempts=1)
BAD = {"id": "bad", "labs": {"nothing": 1}}


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, with uncertainty."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", uncertainty=TINY_UNCERTAINTY).path


@asynccontextmanager
async def connected(runtime: Runtime, **options: Any) -> AsyncIterator[AsyncClient]:
    """A client of an application in this process."""
    async with running(build_app(lambda: runtime)) as http, AsyncClient("http://test", http=http, **options) as client:
        yield client


def ask(bundle: Path, scenario: Callable[[AsyncClient], Awaitable[None]], **options: Any) -> None:
    """Run `scenario` with a client of an application that serves `bundle`."""

    async def main() -> None:
        async with connected(Runtime(Settings(bundle=bundle, num_threads=1, max_instances=8)), **options) as client:
            await scenario(client)

    asyncio.run(main())


def test_results_are_the_documented_ones() -> None:
    """Every class has the fields that /docs.json describes, and those without a default are those it requires."""
    schemas = build_openapi(None)["components"]["schemas"]
    classes = [kind for kind in vars(results).values() if isinstance(kind, type) and kind.__name__ in schemas]
    assert len(classes) == 21
    for kind in classes:
        config = kind.__struct_config__
        tag = {config.tag_field} if config.tag_field else set()
        fields, optional = (
            set(kind.__struct_fields__),
            kind.__struct_fields__[len(kind.__struct_fields__) - len(kind.__struct_defaults__) :],
        )
        assert fields | tag == set(schemas[kind.__name__]["properties"]), kind.__name__
        assert (fields | tag) - set(optional) == set(schemas[kind.__name__]["required"]), kind.__name__


def test_every_code_of_the_service_has_its_class() -> None:
    """At the status that the service gives it; none is claimed by two classes."""

    def tree(root: type[ApiError]) -> Iterator[type[ApiError]]:
        for kind in root.__subclasses__():
            yield kind
            yield from tree(kind)

    served = {kind.code for kind in tree(ApiError)}
    known = [code for kind in kinds() for code in kind.codes]
    assert sorted(known) == sorted(served)


def test_one_record_is_answered_with_its_explanation(bundle: Path) -> None:
    """Typed, and the numbers of the example."""

    async def scenario(client: AsyncClient) -> None:
        assert await client.is_ready()
        answer = await client.predict(tiny_example())
        assert answer.probability == pytest.approx(EXAMPLE_RISK, abs=1e-5)
        assert answer.id == "stay-1"
        assert answer.explanation is not None
        assert [expert.name for expert in answer.explanation.experts][-1] == "redundancy"
        assert answer.uncertainty is not None
        assert (await client.predict(tiny_example(), explain=False)).explanation is None

    ask(bundle, scenario)


def test_numpy_values_and_nan_are_taken(bundle: Path) -> None:
    """A flat vector of float32 is a modality; NaN is a missing value."""

    async def scenario(client: AsyncClient) -> None:
        answer = await client.predict(
            {"labs": np.array([4.0, np.nan], np.float32), "history": {"age": np.float64(70), "sex": "male"}}
        )
        assert answer.probability == pytest.approx(EXAMPLE_RISK, abs=1e-5)
        assert answer.missing == ["labs.sod"]
        with pytest.raises(TypeError, match="found complex"):
            await client.predict({"labs": {"crea": 1j}})

    ask(bundle, scenario)


def test_many_records_are_answered_in_order_in_several_requests(bundle: Path) -> None:
    """More than fit one request; those that do not fit the model are answered one by one, even where a chunk holds no other."""
    records = [tiny_example() | {"id": i} for i in range(20)]
    records[3] = BAD | {"id": 3}
    records[8:16] = [BAD | {"id": i} for i in range(8, 16)]

    async def scenario(client: AsyncClient) -> None:
        answers = [answer async for answer in client.predict_many(records, concurrency=2)]
        assert [answer.id for answer in answers] == list(range(20))
        failed = [answer for answer in answers if isinstance(answer, FailedPrediction)]
        assert [answer.id for answer in failed] == [3, *range(8, 16)]
        assert {answer.error.code for answer in failed} == {"INVALID_INPUT"}
        assert {len(answer.error.detail) for answer in failed} == {1}

    ask(bundle, scenario, max_instances=8)


def test_requests_are_cut_by_bytes_as_well() -> None:
    """What is in a request fits it, a record that is too large alone excepted, and nothing is left out."""
    records = [{"text": "x" * size} for size in (10, 10, 10, 100, 10)]
    found = list(calls.chunks(records, max_instances=256, max_bytes=60))
    assert [len(chunk) for chunk in found] == [2, 1, 1, 1]
    assert all(sum(map(len, chunk)) <= 60 for chunk in found if len(chunk) > 1)
    assert [json.loads(record) for chunk in found for record in chunk] == records


def test_a_models_name_is_one_part_of_the_path() -> None:
    """Whatever is in it."""
    call = calls.infer_call("a/../b", {"labs": np.zeros((1, 1))}, outputs=None)
    assert call.path == "/v2/models/a%2F..%2Fb/infer"


def test_nothing_is_on_its_way_when_nobody_wants_more(bundle: Path) -> None:
    """Whoever breaks off waits until what was asked has been called off."""
    begun, left = 0, 0

    async def slow(request: httpx.Request) -> httpx.Response:
        nonlocal begun, left
        begun += 1
        try:
            if begun > 1:
                await asyncio.sleep(60)
            answer = {"status": "error", "id": None, "error": {"code": "INVALID_INPUT", "message": "", "detail": []}}
            model = {"name": "m", "version": "1", "sha256": "s", "provider": "p"}
            timing = {"queue": 0, "inference": 0, "total": 0, "batch_size": 1}
            told = {"model": model, "request_id": "r", "notice": "", "predictions": [answer], "timing_ms": timing}
            return httpx.Response(200, json=told)
        finally:
            left += 1

    async def main() -> None:
        http = httpx.AsyncClient(transport=httpx.MockTransport(slow))
        async with AsyncClient("http://x", http=http, max_instances=1) as client:
            answers = client.predict_many([tiny_example()] * 9, concurrency=3)
            await anext(answers)
            await asyncio.sleep(0)
            await answers.aclose()  # type: ignore[attr-defined]
            assert left == begun

    asyncio.run(main())


def test_no_record_is_no_request(bundle: Path) -> None:
    """An empty iterable has an empty answer."""

    async def scenario(client: AsyncClient) -> None:
        assert [answer async for answer in client.predict_many([])] == []

    ask(bundle, scenario)


def test_no_requests_at_a_time_is_no_way_to_ask(bundle: Path) -> None:
    """Rather than an empty answer to records that were there."""

    async def scenario(client: AsyncClient) -> None:
        with pytest.raises(ValueError, match="concurrency=0"):
            _ = [answer async for answer in client.predict_many([tiny_example()], concurrency=0)]
        with Client("http://test") as waiting, pytest.raises(ValueError, match="concurrency=0"):
            list(waiting.predict_many([tiny_example()], concurrency=0))

    ask(bundle, scenario)


def test_a_client_that_was_handed_over_is_not_closed() -> None:
    """It is its owner's; one of this client's own is closed."""
    http = httpx.Client()
    with Client("http://test", http=http):
        pass
    assert not http.is_closed
    with Client("http://test") as client:
        own = client._http
    assert own.is_closed
    http.close()


def test_a_request_that_does_not_fit_ends_the_iteration(bundle: Path) -> None:
    """More records than the service takes at once is no record's fault."""

    async def scenario(client: AsyncClient) -> None:
        with pytest.raises(InvalidInputError, match="at most 8 instances, found 9"):
            _ = [answer async for answer in client.predict_many([tiny_example()] * 9)]

    ask(bundle, scenario)


def test_arrays_go_and_come_as_bytes(bundle: Path) -> None:
    """The binary protocol answers what JSON does."""
    arrays = {"labs": np.array([[4, 140], [np.nan, np.nan]], np.float64), "history": np.array([[70, 1], [60, 0]], np.float32)}

    async def scenario(client: AsyncClient) -> None:
        answer = await client.infer(arrays, model="tiny")
        assert answer["prediction"][0, 1] == pytest.approx(EXAMPLE_RISK, abs=1e-5)
        assert answer["expert_logits"].shape == (2, 4, 2)
        assert set(await client.infer(arrays, model="tiny", outputs=["contribution"])) == {"contribution"}
        with pytest.raises(NotFoundError, match="served is tiny"):
            await client.infer(arrays, model="another")
        with pytest.raises(
            ValueError, match=r"labs: expected numbers of shape \(records, columns\), found float64 of shape \(2,\)"
        ):
            await client.infer({"labs": np.zeros(2)}, model="tiny")

    ask(bundle, scenario)


def test_the_model_and_its_explanations_are_told(bundle: Path) -> None:
    """GET /model and GET /explanations, typed."""

    async def scenario(client: AsyncClient) -> None:
        model = await client.model()
        assert (model.model.name, model.task["outcome"]) == ("tiny", "death within one year")
        assert (await client.explanations()).model == model.model

    ask(bundle, scenario)


def test_a_refusal_says_where_and_under_which_id(bundle: Path) -> None:
    """The caller's request id comes back; the text names the place and never the value."""

    async def scenario(client: AsyncClient) -> None:
        with pytest.raises(InvalidInputError) as refused:
            await client.predict({"labs": {"crea": "sentinel"}}, request_id="mine-1")
        assert refused.value.request_id == "mine-1"
        assert refused.value.status == 422
        assert refused.value.detail[0].loc == ["instances", 0, "labs", "crea"]
        assert "sentinel" not in str(refused.value)

    ask(bundle, scenario)


def test_outcomes_are_told_and_shown_with_what_was_kept(bundle: Path, tmp_path: Path) -> None:
    """By the request id that the caller chose; one that fits nothing is told in its place, and alone refused."""
    token, lines = new_key("registry", ["predict", "outcomes", "audit"], None)
    (tmp_path / "keys.toml").write_text(lines)
    death = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=1)))
    told = [OutcomeItem("r1", "dead", time=death), OutcomeItem("r1", "alive", position=5)]

    async def main() -> None:
        url: Any = f"sqlite:///{tmp_path / 'kept.db'}"
        settings = Settings(bundle=bundle, num_threads=1, api_keys=tmp_path / "keys.toml", audit_url=url)
        async with connected(Runtime(settings), key=token) as client:
            await client.predict(tiny_example(), request_id="r1")
            answer = await client.tell_outcomes(told)
            assert (answer.accepted, [one["status"] for one in answer.outcomes]) == (1, ["ok", "error"])
            (kept,) = (await client.kept("r1")).predictions
            assert kept.prediction["label"] == "dead"
            assert [(one.label, one.time) for one in kept.outcomes] == [("dead", death)]
            assert kept.time <= kept.outcomes[0].received
            with pytest.raises(InvalidInputError, match="no prediction is kept"):
                await client.tell_outcomes(told[1:])
            with pytest.raises(NotFoundError):
                await client.kept("r2")

    asyncio.run(main())


def test_keys_are_sent(bundle: Path, tmp_path: Path) -> None:
    """No key is 401, one without the scope 403."""
    token, lines = new_key("reader", ["predict"], None)
    (tmp_path / "keys.toml").write_text(lines)

    async def main() -> None:
        settings = Settings(bundle=bundle, num_threads=1, api_keys=tmp_path / "keys.toml")
        async with connected(Runtime(settings), key=token) as client:
            assert (await client.predict(tiny_example())).label == "dead"
            with pytest.raises(ForbiddenError):
                await client.model()
        async with connected(Runtime(settings)) as client:
            with pytest.raises(UnauthorizedError):
                await client.predict(tiny_example())

    asyncio.run(main())


def test_the_client_needs_nothing_of_the_service() -> None:
    """Importing it imports neither the API, BentoML, ONNX Runtime nor pydantic."""
    program = (
        "import sys, service.client; found = {name.partition('.')[0] for name in sys.modules};"
        "print(sorted(found & {'bentoml', 'onnxruntime', 'pydantic', 'starlette', 'pyarrow'}),"
        "sorted(n for n in sys.modules if n.startswith('service.') and not n.startswith('service.client')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[] []"


@pytest.fixture(scope="module")
def narrow(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real service that is overloaded by two requests at once."""
    environment = {"I2MOE_QUEUE_MAX": "2", "I2MOE_MAX_INSTANCES": "2", "I2MOE_MAX_BATCH_SIZE": "1", "I2MOE_MAX_WAIT_MS": "20"}
    with running_server(bundle, tmp_path_factory.mktemp("narrow"), environment=environment) as server:
        yield server


@pytest.mark.slow
def test_overload_is_waited_out(narrow: Server) -> None:
    """Where a client that asks once is refused, one that comes back when it is told to gets every answer."""
    records = [tiny_example() | {"id": i} for i in range(48)]
    with Client(narrow.url, max_instances=2, retries=ONCE) as hasty, pytest.raises(OverloadedError) as refused:
        list(hasty.predict_many(records * 20, concurrency=24))
    assert refused.value.retry_after_s == 1
    with Client(narrow.url, max_instances=2, retries=Retries(attempts=60, deadline_s=60)) as patient:
        answers = list(patient.predict_many(records, concurrency=24))
    assert [answer.id for answer in answers] == list(range(48))
    assert all(isinstance(answer, Prediction) for answer in answers)


@pytest.mark.slow
def test_the_waiting_client_is_the_same(narrow: Server) -> None:
    """Every call of `Client`, asked of a real service."""
    with Client(narrow.url + "/") as client:
        assert client.is_ready()
        assert client.predict(tiny_example()).probability == pytest.approx(EXAMPLE_RISK, abs=1e-5)
        with pytest.raises(InvalidInputError):
            client.explain(tiny_example())  # this bundle does not attribute to features
        assert client.predict_request([tiny_example(), BAD]).timing_ms.batch_size >= 1
        assert client.model().model == client.explanations().model
        arrays = {"labs": np.array([[4.0, math.nan]])}
        assert client.infer(arrays, model="tiny", outputs=["prediction"])["prediction"].shape == (1, 2)


@pytest.mark.slow
def test_results_are_taken_as_they_are_needed(narrow: Server) -> None:
    """A generator is read a few requests ahead, not to its end."""
    taken = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal taken
        while True:
            taken += 1
            yield tiny_example()

    with Client(narrow.url, max_instances=2) as client:
        answers = client.predict_many(endless(), concurrency=2)
        assert isinstance(next(answers), Prediction)
        answers.close()  # type: ignore[attr-defined]
    assert taken < 20


def test_nobody_listening_is_told_as_such() -> None:
    """No connection, after as many attempts as are allowed."""
    with Client("http://127.0.0.1:9", retries=Retries(attempts=2, base_s=0.001)) as client:
        assert not client.is_ready()
        with pytest.raises(NoAnswerError, match="ConnectError"):
            client.model()


def test_nobody_is_waited_for_beyond_the_deadline(bundle: Path) -> None:
    """A service that never answers costs a call its deadline and not the time-out of a connection."""

    async def silent(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError("the client still waits")

    async def main() -> None:
        http = httpx.AsyncClient(transport=httpx.MockTransport(silent))
        async with AsyncClient("http://x", http=http, retries=Retries(deadline_s=0.05)) as client:
            with pytest.raises(GivenUpError, match=r"within 0\.05 s"):
                await client.model()

    asyncio.run(main())


def test_tensors_that_are_not_bytes_are_told_as_such() -> None:
    """Where bytes were asked for, numbers in JSON are no answer."""
    told = {"outputs": [{"name": "prediction", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
    http = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, json=told)))
    with Client("http://x", http=http) as client, pytest.raises(AnswerError, match="bytes after the JSON part"):
        client.infer({"labs": np.zeros((1, 1))}, model="tiny")


def test_a_length_that_is_no_number_is_told_as_such() -> None:
    """An error of the client's own, as any answer that cannot be read."""
    answer = httpx.Response(200, content=b"{}", headers={"Inference-Header-Content-Length": "all"})
    http = httpx.Client(transport=httpx.MockTransport(lambda _: answer))
    with Client("http://x", http=http) as client, pytest.raises(AnswerError, match="bytes after the JSON part"):
        client.infer({"labs": np.zeros((1, 1))}, model="tiny")


def test_another_service_is_told_as_such() -> None:
    """A success whose body is not this API's is no answer; what it said is not repeated."""
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"label": "sentinel"}))
    with Client("http://x", http=httpx.Client(transport=transport)) as client, pytest.raises(AnswerError) as told:
        client.predict(tiny_example())
    assert "sentinel" not in str(told.value)
