"""Problems and the errors that carry them."""

import pickle

import pytest

from service.bundle.errors import BundleError, InferenceError, InvalidRecordError, Problem


def test_a_problem_reads_as_place_and_sentence() -> None:
    """A problem is told as its dotted place and a sentence; the record itself has a name too."""
    problem = Problem(("crea",), "number_type", "must be a number")
    assert str(problem.under("instances", 0, "labs")) == "instances.0.labs.crea: must be a number"
    assert str(Problem((), "missing", "has no value")) == "record: has no value"


def test_an_error_lists_its_problems_on_one_line() -> None:
    """The message is one line of at most ten problems; all of them are kept."""
    problems = [Problem((f"m{i}",), "missing", "is required") for i in range(12)]
    error = InvalidRecordError(problems)
    assert tuple(problems) == error.problems
    assert str(InvalidRecordError(problems[:2])) == "m0: is required; m1: is required"
    assert str(error).endswith("m9: is required; and 2 more")


@pytest.mark.parametrize("error", [BundleError, InferenceError, lambda text: InvalidRecordError([Problem((), "x", text)])])
def test_a_message_is_one_short_line(error: type[Exception]) -> None:
    """Whatever of a file it repeats: line breaks, other writing directions, a million characters; start and end are kept."""
    assert str(error("expected\n a\u202eb\x00, found c")).endswith("expected  a?b?, found c")
    long = str(error("expected " + "x" * 1_000_000 + " found y"))
    assert len(long) < 1100
    assert "expected xx" in long
    assert long.endswith("xx found y")


def test_a_message_survives_another_process() -> None:
    """A pickled error says the same."""
    error = BundleError("x" * 5000)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
