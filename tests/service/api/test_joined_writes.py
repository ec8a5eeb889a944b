"""Answers leave in one piece: what is written in a turn of the event loop is one write, in order, and nothing is lost."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from service.api.joined_writes import JoinedWrites


class FakeTransport:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def close(self) -> None:
        self.told.append("close")
        self.is_closed = True

    def write_eof(self) -> None:
        self.told.append("eof")

    def is_closing(self) -> bool:
        return self.is_closed

    def set_protocol(self, protocol: object) -> None:
        self.told.append(protocol)

    def get_extra_info(self, name: str) -> str:
        return f"{name} of the transport"


def play(scenario: Callable[[JoinedWrites, FakeTransport], None], *, turns: int = 1) -> list[Any]:
    """What the transport was told in one turn of a loop, and those after it."""

    async def run() -> list[Any]:
        transport = FakeTransport()
        scenario(JoinedWrites(transport, asyncio.get_running_loop()), transport)  # type: ignore[arg-type]
        for _ in range(turns):
            await asyncio.sleep(0)
        return transport.told

    return asyncio.run(run())


def test_what_is_written_in_a_turn_is_one_write() -> None:
    """Head, body and what follows, in order; the next turn's is another."""

    def scenario(joined: JoinedWrites, transport: FakeTransport) -> None:
        joined.write(b"head")
        joined.write(b"body")
        assert transport.told == []
        asyncio.get_running_loop().call_later(0.001, joined.write, b"next")

    assert play(scenario) == [b"headbody"]


def test_turns_are_told_apart() -> None:
    """Nothing is written twice."""

    def scenario(joined: JoinedWrites, transport: FakeTransport) -> None:
        joined.write(b"one")
        asyncio.get_running_loop().call_soon(joined.write, b"two")

    assert play(scenario, turns=3) == [b"one", b"two"]


def test_closing_and_leaving_come_after_what_was_written() -> None:
    """The last answer of a connection is sent before it is closed, or given to another protocol."""

    def closing(joined: JoinedWrites, transport: FakeTransport) -> None:
        joined.write(b"last")
        joined.close()

    def leaving(joined: JoinedWrites, transport: FakeTransport) -> None:
        joined.write(b"switching")
        joined.set_protocol("another")  # type: ignore[arg-type]

    assert play(closing) == [b"last", "close"]
    assert play(leaving) == [b"switching", "another"]


def test_nothing_is_written_to_a_connection_that_is_gone() -> None:
    """Its client has hung up within the turn."""

    def scenario(joined: JoinedWrites, transport: FakeTransport) -> None:
        joined.write(b"too late")
        transport.is_closed = True

    assert play(scenario) == []


def test_all_else_is_the_transports() -> None:
    """Whoever asks for the peer's address gets it."""

    def scenario(joined: JoinedWrites, transport: FakeTransport) -> None:
        transport.told.append(joined.get_extra_info("peername"))

    assert play(scenario) == ["peername of the transport"]


def test_large_answers_go_at_once() -> None:
    """Or a transport would never say that its client is slow, and all of an answer would be held."""

    def scenario(joined: JoinedWrites, transport: FakeTransport) -> None:
        joined.write(b"head")
        joined.write(b"x" * (1 << 16))
        assert transport.told == [b"head" + b"x" * (1 << 16)]
        joined.write(b"tail")

    assert play(scenario)[1:] == [b"tail"]


def test_what_is_changed_after_it_was_written_is_sent_as_it_was() -> None:
    """And what cannot be sent raises where it is written."""

    def scenario(joined: JoinedWrites, transport: FakeTransport) -> None:
        buffer = bytearray(b"aaaa")
        joined.write(buffer)  # type: ignore[arg-type]
        buffer[:] = b"bbbb"
        with pytest.raises(TypeError):
            joined.write("text")  # type: ignore[arg-type]

    assert play(scenario) == [b"aaaa"]


def test_lines_and_the_end_keep_their_order() -> None:
    """Nothing overtakes what was written before."""

    def scenario(joined: JoinedWrites, transport: FakeTransport) -> None:
        joined.write(b"one")
        joined.writelines([b"two", b"three"])
        joined.write_eof()

    assert play(scenario) == [b"onetwothree", "eof"]
