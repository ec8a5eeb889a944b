"""What a bare server can do: Starlette, msgspec and thirty lines of batching; no validation, metrics, explanation or limits."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.serving.peers.common import MAX_BATCH, score, session, stacked


class Record(msgspec.Struct):
    """One instance."""

    lab: list[float]
    note: list[float]
    code: list[float]


class Body(msgspec.Struct):
    """A request."""

    instances: list[Record]


decode, encode = msgspec.json.Decoder(Body).decode, msgspec.json.encode
graph = session()
thread = ThreadPoolExecutor(1)
queue: asyncio.Queue[tuple[dict[str, Any], asyncio.Future[dict[str, Any]]]]


def run(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return score(graph, stacked(records))


async def consume() -> None:
    loop = asyncio.get_running_loop()
    while True:
        waiting = [await queue.get()]
        while not queue.empty() and len(waiting) < MAX_BATCH:
            waiting.append(queue.get_nowait())
        answers = await loop.run_in_executor(thread, run, [record for record, _ in waiting])
        for (_, done), answer in zip(waiting, answers, strict=True):
            if not done.cancelled():
                done.set_result(answer)


async def predict(request: Request) -> Response:
    body = decode(await request.body())
    futures = []
    for instance in body.instances:
        done: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        queue.put_nowait(({"lab": instance.lab, "note": instance.note, "code": instance.code}, done))
        futures.append(done)
    return Response(encode({"predictions": [await done for done in futures]}), media_type="application/json")


async def ready(_: Request) -> Response:
    return Response()


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    global queue  # noqa: PLW0603 - a queue belongs to its event loop
    queue = asyncio.Queue()
    consumer = asyncio.create_task(consume())
    yield
    consumer.cancel()


app = Starlette(routes=[Route("/predict", predict, methods=["POST"]), Route("/readyz", ready)], lifespan=lifespan)
