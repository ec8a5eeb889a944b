"""Asks one thing again and again and keeps account of every answer; a process of its own beside the server.

    python -m benchmarks.reliability.load --port P --body FILE --seconds S [--rate R] [--clients N] [--leave SHARE]

With a rate, requests are due at random times (Poisson) whether or not earlier ones are answered, as patients arrive. A client
that is idle asks, on the connection that it keeps; where none is, the request waits for one, and its latency counts from when it
was due. Without a rate, each client asks as soon as it has its answer. No request is ever asked again. Every 200 must hold the
probability that the first one held. Its only output is a line of JSON, in which requests that ended without an answer are

    lost     hung up on, on a connection on which the server had answered before
    unheard  the same on a connection on which it never had: it waited in the system's queue when the server went
    left     by us
"""

import argparse
import asyncio
import json
import random
import re
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_PROBABILITY = re.compile(rb'"probability":([0-9.e-]+)')
_SAME = 1e-4  # the last bits depend on how a batch was run
_LAST_ANSWER_S = 20.0
_RECONNECT_S = 0.05


@dataclass
class Account:
    """What became of every request."""

    started: float = field(default_factory=time.perf_counter)
    offered: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)  # by status, or see the module's text
    latencies_ms: dict[str, list[float]] = field(default_factory=dict)  # by status
    good_by_second: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    expected: float | None = None

    def answered(self, status: str, due: float, body: bytes) -> None:
        """Note one answer."""
        now = time.perf_counter()
        self.outcomes[status] += 1
        self.latencies_ms.setdefault(status, []).append(1000 * (now - due))
        if status == "200":
            self.good_by_second[int(now - self.started)] += 1
            self._compare(body)

    def _compare(self, body: bytes) -> None:
        found = _PROBABILITY.search(body)
        value = float(found[1]) if found else float("nan")
        self.expected = value if self.expected is None else self.expected
        self.wrong += not abs(value - self.expected) < _SAME

    def told(self, seconds: float) -> dict[str, object]:
        """As JSON."""
        waits = {status: sorted(found) for status, found in self.latencies_ms.items()}
        return {
            "seconds": seconds,
            "offered": self.offered,
            "outcomes": dict(self.outcomes),
            "unanswered": self.offered - self.outcomes.total(),
            "wrong": self.wrong,
            "good_per_s": round(sum(self.good_by_second[second] for second in range(int(seconds))) / int(seconds), 1),
            "latency_ms": {status: _quantiles(found) for status, found in waits.items()},
            "good_by_second": [self.good_by_second[second] for second in range(int(seconds))],
        }


def _quantiles(ordered: list[float]) -> dict[str, float]:
    places = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[min(int(share * len(ordered)), len(ordered) - 1)], 2) for name, share in places.items()}


class Lane(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._due: float | None = None
        self._was_heard = False
        self._got = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._load.lanes.add(self)

    def ask(self, due: float, *, leave: bool) -> None:
        """Send the request; with `leave`, hang up at once."""
        assert self._transport is not None
        self._due = due
        self._transport.write(self._load.request)
        if leave:
            self._due = None
            self._load.account.outcomes["left"] += 1
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Note an answer once it is whole."""
        self._got += data
        head, found, body = self._got.partition(b"\r\n\r\n")
        length = _LENGTH.search(head) if found else None
        if length is None or len(body) < int(length[1]) or self._due is None:
            return
        self._was_heard = True
        self._load.account.answered(head[9:12].decode(), self._due, bytes(body))
        self._got.clear()
        self._due = None
        self._load.is_free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note a request that was hung up on."""
        del exc
        if self._due is not None:
            self._load.account.outcomes["lost" if self._was_heard else "unheard"] += 1
        self._load.is_gone(self)

    def hang_up(self) -> None:
        """Close; what is being asked stays unanswered."""
        self._due = None
        if self._transport is not None:
            self._transport.close()


class Load:
    """Everything that is asked of one server."""

    def __init__(self, port: int, body: bytes, *, leave: float = 0.0) -> None:
        """`leave` is the share of requests whose client hangs up at once."""
        head = f"POST /predict HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.request = head.encode() + body
        self.account = Account()
        self._port, self._leave = port, leave
        self._idle: deque[Lane] = deque()  # who has waited longest asks next, or the server would hang up on it
        self._waiting: deque[float] = deque()  # when requests were due that no lane was there for
        self.lanes: set[Lane] = set()  # that are open
        self._openings: set[asyncio.Task[None]] = set()
        self._asks_again = self._has_ended = False
        self._random = random.Random(0)  # noqa: S311 - arrivals

    def is_free(self, lane: Lane) -> None:
        """A lane is new, or has its answer."""
        if self._waiting:
            self._ask(lane, self._waiting.popleft())
        elif self._asks_again:
            self.account.offered += 1
            self._ask(lane, time.perf_counter())
        else:
            self._idle.append(lane)

    def _ask(self, lane: Lane, due: float) -> None:
        lane.ask(due, leave=self._random.random() < self._leave)

    def is_gone(self, lane: Lane) -> None:
        """A lane is closed, by us or by the server; another takes its place."""
        self.lanes.discard(lane)
        if lane in self._idle:
            self._idle.remove(lane)
        if not self._has_ended:
            opening = asyncio.create_task(self._open())
            self._openings.add(opening)
            opening.add_done_callback(self._openings.discard)

    async def at_rate(self, rate: float, num_clients: int, seconds: float) -> None:
        """Ask `rate` times a second on average."""
        await self._connect(num_clients)
        due, end = time.perf_counter(), time.perf_counter() + seconds
        while due < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            while due <= time.perf_counter() and due < end:
                self.account.offered += 1
                if self._idle:
                    self._ask(self._idle.popleft(), due)
                else:
                    self._waiting.append(due)
                due += self._random.expovariate(rate)
        await self._wait_for_last_answers()

    async def by_clients(self, num_clients: int, seconds: float) -> None:
        """Let every client ask as soon as it has its answer."""
        await self._connect(num_clients)
        self._asks_again = True
        while self._idle:
            self.is_free(self._idle.popleft())
        await asyncio.sleep(seconds)
        self._asks_again = False
        await self._wait_for_last_answers()

    async def _connect(self, num_clients: int) -> None:
        for _ in range(num_clients):
            await self._open()
        self.account.started = time.perf_counter()

    async def _open(self) -> None:
        """One lane more, as soon as there is a server to connect to."""
        while not self._has_ended:
            try:
                _, lane = await asyncio.get_running_loop().create_connection(lambda: Lane(self), "127.0.0.1", self._port)
            except OSError:
                await asyncio.sleep(_RECONNECT_S)
                continue
            self.is_free(lane)
            return

    async def _wait_for_last_answers(self) -> None:
        give_up = time.perf_counter() + _LAST_ANSWER_S
        while self.account.outcomes.total() < self.account.offered and time.perf_counter() < give_up:
            await asyncio.sleep(0.05)
        self._has_ended = True
        for opening in self._openings:
            opening.cancel()
        await asyncio.gather(*self._openings, return_exceptions=True)
        while self.lanes:
            for lane in self.lanes:
                lane.hang_up()
            await asyncio.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.load", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, help="requests a second")
    parser.add_argument("--clients", type=int, default=32, help="connections")
    parser.add_argument("--leave", type=float, default=0.0, help="share of requests whose client hangs up at once")
    args = parser.parse_args()

    async def play() -> Load:
        load = Load(args.port, args.body.read_bytes(), leave=args.leave)
        if args.rate:
            await load.at_rate(args.rate, args.clients, args.seconds)
        else:
            await load.by_clients(args.clients, args.seconds)
        return load

    print(json.dumps(asyncio.run(play()).account.told(args.seconds)))


if __name__ == "__main__":
    main()
