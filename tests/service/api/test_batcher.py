import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.batcher import Batch, Batcher, BatcherClosedError, CallerLeftError, QueueFullError
from service.api.batches import Scored
from service.bundle.output import Output
from tests.service.api.fake_model import FAILS, FakeModel, column

Scenario = Callable[[Batcher, FakeModel], Awaitable[None]]


@asynccontextmanager
async def batching(model: FakeModel, **options: Any) -> AsyncIterator[Batcher]:
    batcher = Batcher(model.run, **{"max_batch_size": 4, "queue_max": 100, **options})
    try:
        yield batcher
    finally:
        model.release()
        await batcher.close()


def play(scenario: Scenario, **options: Any) -> FakeModel:
    """Run a scenario against a new batcher and a fake model."""

    async def main() -> FakeModel:
        model = FakeModel()
        async with asyncio.timeout(10), batching(model, **options) as batcher:
            await scenario(batcher, model)
        return model

    return asyncio.run(main())


async def submit(batcher: Batcher, *values: float) -> Scored:
    return await batcher.submit(column(*values), len(values))


async def started(model: FakeModel) -> None:
    """Wait until a batch is in the model."""
    while not model.started.is_set():
        await asyncio.sleep(0.001)


async def occupy(batcher: Batcher, model: FakeModel) -> "asyncio.Task[Scored]":
    """Hold the model with the sample 0 in it."""
    model.hold()
    task = asyncio.create_task(submit(batcher, 0))
    await started(model)
    return task


async def waiting(batcher: Batcher, *requests: tuple[float, ...]) -> "list[asyncio.Task[Scored]]":
    """Requests in the queue, in this order."""
    tasks = [asyncio.create_task(submit(batcher, *values)) for values in requests]
    await asyncio.sleep(0)
    return tasks


def answered(scored: Scored) -> list[float]:
    assert scored.output is not None
    values: list[float] = scored.output.prediction[:, 0].tolist()
    return values


def test_a_lone_request_is_dispatched_at_once() -> None:
    """With nothing in flight a request does not wait for company."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        scored = await submit(batcher, 7)
        assert answered(scored) == [7]
        assert scored.batch_size == 1
        assert scored.queue_s < 0.5
        assert scored.inference_s > 0

    assert play(scenario).batches == [[7]]


def test_requests_that_arrive_while_a_batch_runs_form_the_next_batch() -> None:
    """Three requests that arrive during a batch run together, each with its own answer."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        first = await occupy(batcher, model)
        tasks = await waiting(batcher, (1,), (2,), (3,))
        model.release()
        assert [answered(await task) for task in [first, *tasks]] == [[0], [1], [2], [3]]
        assert [(await task).batch_size for task in tasks] == [3, 3, 3]

    assert play(scenario).batches == [[0], [1, 2, 3]]


def test_samples_are_counted_and_whole_requests_stay_together() -> None:
    """A batch takes requests while their samples fit, and leaves one that fits a batch of its own whole."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        first = await occupy(batcher, model)
        tasks = await waiting(batcher, (1, 2), (3,), (4, 5), (6, 7))
        assert batcher.depth == 7
        model.release()
        await asyncio.gather(first, *tasks)

    assert play(scenario).batches == [[0], [1, 2, 3], [4, 5, 6, 7]]


def test_a_full_batch_is_given_to_the_thread_ahead() -> None:
    """One, while another runs; it runs next, whatever the event loop is doing, and what cannot fill a batch waits."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        first = await occupy(batcher, model)
        tasks = await waiting(batcher, (1, 2), (3, 4), (5, 6, 7, 8), (9,))
        await asyncio.sleep(0)
        assert batcher.depth == 5
        model.started.clear()
        model.release()
        assert model.started.wait(10)  # in the event loop, which does nothing else meanwhile
        await asyncio.gather(first, *tasks)

    assert play(scenario).batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_a_request_larger_than_a_batch_is_split_and_rejoined() -> None:
    """Ten samples go through batches of four and come back as ten, and what is left of the last batch is filled."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        first = await occupy(batcher, model)
        large, small = await waiting(batcher, tuple(range(1, 11)), (11,))
        model.release()
        assert answered(await large) == list(range(1, 11))
        assert (await large).batch_size == 4
        assert answered(await small) == [11]
        await first

    assert play(scenario).batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]]


def test_a_full_queue_refuses_at_once() -> None:
    """A request that would make more samples wait than allowed is refused, and one that fits is still taken."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        first = await occupy(batcher, model)
        tasks = await waiting(batcher, (1, 2), (3, 4))
        with pytest.raises(QueueFullError, match="4 samples are waiting, 2 more would exceed 5"):
            await submit(batcher, 5, 6)
        tasks += await waiting(batcher, (7,))
        model.release()
        await asyncio.gather(first, *tasks)
        assert batcher.depth == 0

    assert play(scenario, queue_max=5).batches == [[0], [1, 2, 3, 4], [7]]


def test_a_cancelled_waiter_is_dropped_before_compute() -> None:
    """A caller that gives up leaves the queue; the others keep their order and answers."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        first = await occupy(batcher, model)
        kept, dropped, last = await waiting(batcher, (1,), (2,), (3,))
        dropped.cancel()
        await asyncio.sleep(0)
        assert batcher.depth == 2
        model.release()
        assert [answered(await task) for task in (kept, last)] == [[1], [3]]
        await first

    assert play(scenario).batches == [[0], [1, 3]]


def test_the_rest_of_a_cancelled_split_request_is_dropped() -> None:
    """A large request that is cancelled during its first batch has no second one."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        model.hold()
        (large,) = await waiting(batcher, (1, 2, 3, 4, 5, 6))
        await started(model)
        large.cancel()
        await asyncio.sleep(0)
        assert batcher.depth == 0
        model.release()
        assert answered(await submit(batcher, 7)) == [7]

    assert play(scenario).batches == [[1, 2, 3, 4], [7]]


def test_a_caller_that_has_left_is_dropped_before_compute() -> None:
    """Asked when its turn comes: nothing of it is run, it is told so, and the others keep their order and answers."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        first = await occupy(batcher, model)
        (kept,) = await waiting(batcher, (1,))
        left = asyncio.create_task(batcher.submit(column(2, 2), 2, has_left=lambda: True))
        (last,) = await waiting(batcher, (3,))
        model.release()
        assert [answered(await task) for task in (kept, last)] == [[1], [3]]
        with pytest.raises(CallerLeftError):
            await left
        await first
        assert batcher.depth == 0

    assert play(scenario).batches == [[0], [1, 3]]


def test_the_rest_of_a_split_request_is_dropped_when_its_caller_leaves() -> None:
    """A caller that leaves while its first batch runs has no second one."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        model.hold()
        has_left = False
        large = asyncio.create_task(batcher.submit(column(1, 2, 3, 4, 5, 6), 6, has_left=lambda: has_left))
        await started(model)
        has_left = True
        model.release()
        with pytest.raises(CallerLeftError):
            await large
        assert answered(await submit(batcher, 7)) == [7]
        assert batcher.depth == 0

    assert play(scenario).batches == [[1, 2, 3, 4], [7]]


def test_a_batch_of_callers_that_have_all_left_is_not_run() -> None:
    """And the next request is answered."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        first = await occupy(batcher, model)
        left = [asyncio.create_task(batcher.submit(column(i), 1, has_left=lambda: True)) for i in range(3)]
        await asyncio.sleep(0)
        model.release()
        assert {type(error) for error in await asyncio.gather(*left, return_exceptions=True)} == {CallerLeftError}
        await first
        assert answered(await submit(batcher, 7)) == [7]

    assert play(scenario).batches == [[0], [7]]


def test_a_timed_out_waiter_is_dropped_before_compute() -> None:
    """A deadline that passes in the queue costs no compute."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        first = await occupy(batcher, model)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await submit(batcher, 1)
        model.release()
        await first

    assert play(scenario).batches == [[0]]


def test_a_failing_sample_never_fails_its_neighbours() -> None:
    """When a batch fails, only the sample that fails alone gets an error."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        first = await occupy(batcher, model)
        good, mixed, bad = await waiting(batcher, (1,), (2, FAILS), (FAILS,))
        model.release()
        assert answered(await good) == [1]
        assert answered(await mixed) == [2]
        assert list((await mixed).failures) == [1]
        assert (await bad).output is None
        assert list((await bad).failures) == [0]
        assert answered(await first) == [0]
        assert (await good).batch_size == 4

    play(scenario)


def test_a_batch_is_worked_out_in_full_where_one_of_its_requests_wants_it() -> None:
    """Arrays alone for a batch of requests that want no more; what fails together is run apart, each as it was wanted."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        first = await occupy(batcher, model)
        tasks = [asyncio.create_task(batcher.submit(column(x), 1, in_full=x == 3)) for x in (1, 2, 3, FAILS, 5)]
        await asyncio.sleep(0)
        model.release()
        await asyncio.gather(first, *tasks)

    model = play(scenario)
    assert list(zip(model.batches, model.in_full, strict=True)) == [
        ([0], True),
        ([1, 2, 3, FAILS], True),
        ([1], False),
        ([2], False),
        ([3], True),
        ([FAILS], False),
        ([5], False),
    ]


def test_positions_of_failures_count_from_the_start_of_a_split_request() -> None:
    """A failure in the second batch of a request is told by its place in the request."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        scored = await submit(batcher, 1, 2, 3, 4, 5, FAILS, 7)
        assert list(scored.failures) == [5]
        assert answered(scored) == [1, 2, 3, 4, 5, 7]

    play(scenario)


def test_a_failure_is_logged_without_the_exceptions_text(caplog: pytest.LogCaptureFixture) -> None:
    """The log names the exception's type; its text could hold values."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        await submit(batcher, FAILS)

    with caplog.at_level(logging.DEBUG):
        play(scenario)
    assert "inference failed for 1 samples together: ValueError" in caplog.text
    assert "cannot score" not in caplog.text


def test_a_model_that_answers_too_few_rows_fails_the_samples() -> None:
    """A wrong number of rows is a failure, never somebody else's answer."""

    async def main() -> None:
        model = FakeModel()
        batcher = Batcher(
            lambda arrays, **wanted: model.run(arrays, **wanted).rows(slice(1, None)), max_batch_size=4, queue_max=10
        )
        scored = await submit(batcher, 1, 2)
        assert scored.output is None
        assert "expected 1 rows from the model, found 0" in str(scored.failures[0])
        await batcher.close()

    asyncio.run(main())


def test_a_batch_for_which_there_is_no_thread_fails_and_the_next_is_run(caplog: pytest.LogCaptureFixture) -> None:
    """A machine that is out of threads for a moment loses that batch alone."""

    class NoThread:
        def submit(self, *arguments: Any) -> None:
            raise RuntimeError("can't start new thread")

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        thread, batcher._thread = batcher._thread, NoThread()
        with pytest.raises(RuntimeError, match="can't start"):
            await submit(batcher, 1)
        batcher._thread = thread
        assert answered(await submit(batcher, 2)) == [2]

    assert play(scenario).batches == [[2]]
    assert "a batch could not be run: RuntimeError" in caplog.text


requests_made = st.tuples(
    st.lists(st.sampled_from([1.0, 2.0, 3.0, FAILS]), min_size=1, max_size=9),
    st.sampled_from(["stays", "stays", "leaves", "is cancelled"]),
    st.integers(0, 3),  # turns of the event loop before the next one
)


@settings(deadline=None, max_examples=150)
@given(st.lists(requests_made, min_size=1, max_size=25), st.sampled_from([0.0, 0.002]))
def test_whatever_comes_and_goes_who_stays_is_answered(made: list[tuple[list[float], str, int]], max_wait_s: float) -> None:
    """Every sample that can be scored, in order; nothing waits in the end, and closing ends."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        tasks = []
        for values, fate, turns in made:
            left = partial(bool, fate == "leaves")
            tasks.append(asyncio.create_task(batcher.submit(column(*values), len(values), has_left=left)))
            for _ in range(turns):
                await asyncio.sleep(0)
            if fate == "is cancelled":
                tasks[-1].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for (values, fate, _), scored in zip(made, found, strict=True):
            if fate == "stays":
                assert isinstance(scored, Scored)
                assert list(scored.failures) == [i for i, value in enumerate(values) if value == FAILS]
                good = [value for value in values if value != FAILS]
                assert (answered(scored) if good else scored.output) == (good or None)
        assert batcher.depth == 0

    play(scenario, queue_max=1000, max_wait_s=max_wait_s)


def test_close_answers_everything_that_was_accepted() -> None:
    """Closing takes nothing new and finishes what waits."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        first = await occupy(batcher, model)
        tasks = await waiting(batcher, (1,), (2, 3, 4, 5, 6))
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(BatcherClosedError):
            await submit(batcher, 9)
        model.release()
        await closing
        assert all(task.done() for task in [first, *tasks])
        assert answered(await tasks[1]) == [2, 3, 4, 5, 6]

    play(scenario)


def test_with_a_wait_a_lone_request_finds_company() -> None:
    """With max_wait_s, requests that arrive one after another within it share a batch, and a full batch goes at once."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        tasks = await waiting(batcher, (1,))
        await asyncio.sleep(0.01)
        tasks += await waiting(batcher, (2,))
        await asyncio.sleep(0.01)
        tasks += await waiting(batcher, (3, 4))
        await asyncio.gather(*tasks)

    assert play(scenario, max_wait_s=5.0).batches == [[1, 2, 3, 4]]


def test_a_wait_ends_after_its_time() -> None:
    """A lone request waits max_wait_s and no longer."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        scored = await submit(batcher, 1)
        assert 0.02 <= scored.queue_s < 1.0

    play(scenario, max_wait_s=0.02)


def test_a_waiter_that_leaves_during_the_wait_leaves_no_empty_batch() -> None:
    """When everybody gives up while a batch gathers, nothing is run and the batcher goes on."""

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        (gone,) = await waiting(batcher, (1,))
        await asyncio.sleep(0.005)
        gone.cancel()
        assert answered(await submit(batcher, 2)) == [2]

    assert play(scenario, max_wait_s=0.02).batches == [[2]]


def test_batches_and_depth_are_reported() -> None:
    """Each batch is told once with its samples, and the depth ends at zero."""
    batches: list[Batch] = []
    depths: list[int] = []

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        first = await occupy(batcher, model)
        tasks = await waiting(batcher, (1,), (2,))
        model.release()
        await asyncio.gather(first, *tasks)

    play(scenario, on_batch=batches.append, on_depth=depths.append)
    assert [batch.num_samples for batch in batches] == [1, 2]
    assert depths == [1, 0, 1, 2, 0]


def test_what_it_tells_belongs_to_no_request() -> None:
    """A batcher that a request has made (POST /admin/reload) does not go on in that request's context."""
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    async def scenario() -> None:
        request.set("reload")
        async with batching(FakeModel(), on_batch=lambda _: seen.append(request.get())) as batcher:
            await submit(batcher, 1)

    asyncio.run(scenario())
    assert seen == ["none"]


def test_a_broken_observer_does_not_lose_answers(caplog: pytest.LogCaptureFixture) -> None:
    """An exception in on_batch is logged; requests are still answered, later ones too."""

    def fail(batch: Batch) -> None:
        raise RuntimeError("broken")

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        assert answered(await submit(batcher, 1)) == [1]
        assert answered(await submit(batcher, 2)) == [2]

    play(scenario, on_batch=fail)
    assert "a batch could not be handed out: RuntimeError" in caplog.text


def test_who_cannot_say_whether_it_has_left_is_answered() -> None:
    """And so is whoever stands behind it."""

    def unknown() -> bool:
        raise OSError("the connection is in no state to be asked")

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        first = await occupy(batcher, model)
        asked = asyncio.create_task(batcher.submit(column(1), 1, has_left=unknown))
        (behind,) = await waiting(batcher, (2,))
        model.release()
        assert [answered(scored) for scored in await asyncio.gather(first, asked, behind)] == [[0], [1], [2]]

    play(scenario)


def test_an_answer_that_cannot_be_put_together_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a request that was split do not fit; its neighbour in the last batch is answered."""

    def unfit(output: Output, parts: object) -> Output:
        raise ValueError("rows of different widths")

    monkeypatch.setattr(Output, "join", unfit)

    async def scenario(batcher: Batcher, model: FakeModel) -> None:
        first = await occupy(batcher, model)
        split, neighbour = await waiting(batcher, (1, 2, 3, 4, 5, 6), (7,))
        model.release()
        await first
        with pytest.raises(ValueError, match="different widths"):
            await split
        assert answered(await neighbour) == [7]

    play(scenario)
