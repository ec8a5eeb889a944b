"""What became of predictions, in the store: what is kept, what is refused, and what counts."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from service.audit import outcomes as module
from service.audit.__main__ import main
from service.audit.entries import AuditError, Judged, KeptOutcome, Outcome
from service.audit.store import PredictionStore
from service.audit.tables import OUTCOMES, PREDICTIONS
from tests.service.audit.test_store import MODEL, NOW, entry, postgres, url  # noqa: F401 - fixtures

YEAR_AGO = NOW - timedelta(days=365)


@pytest.fixture
def store(url: str) -> Iterator[PredictionStore]:  # noqa: F811 - the fixture
    """A store with predictions of two requests."""
    store = PredictionStore(url, keep_days=365)
    store.write([prediction("r1", 0, 0.9), prediction("r1", 1, 0.2), prediction("r2", 0, 0.6)])
    yield store
    store.close()


def prediction(request_id: str, position: int, risk: float, **changes: Any) -> Any:
    told = {"label": "dead", "probability": risk, "probabilities": {"alive": 1 - risk, "dead": risk}}
    return entry(request_id, position, **{"prediction": told} | changes)


def outcome(request_id: str, label: str = "dead", position: int = 0) -> Outcome:
    return Outcome(request_id=request_id, position=position, label=label)


def add(store: PredictionStore, *outcomes: Outcome) -> list[str | None]:
    """Tell outcomes; answers the word for why each was refused."""
    return [refusal and refusal.type for refusal in store.add_outcomes(outcomes, received=NOW)]


def judged(store: PredictionStore) -> list[Judged]:
    """Of the last year."""
    return list(store.judged(YEAR_AGO, NOW))


def test_outcomes_find_their_predictions(store: PredictionStore) -> None:
    """By request and position; a prediction without an outcome is not judged."""
    assert add(store, outcome("r1"), outcome("r1", "alive", position=1)) == [None, None]
    assert judged(store) == [Judged("tiny", "1.0.0", 0.9, True), Judged("tiny", "1.0.0", 0.2, False)]


def test_what_fits_no_prediction_is_told_and_the_others_are_kept(store: PredictionStore) -> None:
    """A request that is not known, a position, a label; none of them is repeated."""
    told = add(store, outcome("r9"), outcome("r1", position=2), outcome("r1", "ZQX7731"), outcome("r2"))
    assert told == ["unknown_prediction", "unknown_prediction", "unknown_label", None]
    (refusal,) = store.add_outcomes([outcome("r1", "ZQX7731")], received=NOW)
    assert refusal is not None
    assert refusal.msg == "must be one of alive, dead, which this prediction was about"
    assert len(judged(store)) == 1


def test_of_a_request_id_that_was_used_twice_nothing_can_be_told(store: PredictionStore) -> None:
    """An outcome is never given to the wrong patient."""
    store.write([prediction("r2", 0, 0.1)])
    assert add(store, outcome("r2")) == ["ambiguous_prediction"]
    assert judged(store) == []


def test_the_outcome_told_last_counts(store: PredictionStore) -> None:
    """A registry corrects itself, also within one request."""
    add(store, outcome("r1"))
    add(store, outcome("r1", "alive"))
    add(store, outcome("r2", "alive"), outcome("r2", "dead"))
    assert [(one.probability, one.event) for one in judged(store)] == [(0.9, False), (0.6, True)]


def test_the_same_answer_twice_is_one_prediction(store: PredictionStore) -> None:
    """A client whose connection broke asked again under the same id; of another bundle, or a third time, nothing can be told."""
    store.write([prediction("r2", 0, 0.6)])
    assert add(store, outcome("r2")) == [None]
    assert judged(store) == [Judged("tiny", "1.0.0", 0.6, True)]
    store.write([prediction("r1", 0, 0.9, model=MODEL | {"sha256": "b" * 64}), prediction("r2", 0, 0.6)])
    assert add(store, outcome("r1"), outcome("r2")) == ["ambiguous_prediction"] * 2


@pytest.mark.parametrize(("label", "event"), [("b", True), ("a", False), ("c", False)])
def test_of_more_than_two_labels_the_predicted_one_is_judged(store: PredictionStore, label: str, event: bool) -> None:
    """By the probability that was stated of it: the share that comes true is the accuracy."""
    three = {"label": "b", "probability": 0.5, "probabilities": {"a": 0.2, "b": 0.5, "c": 0.3}}
    store.write([prediction("r3", 0, 0.5, prediction=three)])
    assert add(store, outcome("r3", label)) == [None]
    assert judged(store) == [Judged("tiny", "1.0.0", 0.5, event)]


def test_predictions_count_for_a_while(store: PredictionStore) -> None:
    """By when they were made, whenever the outcome came: neither too old ones nor those that are too young."""
    add(store, outcome("r1"))
    assert len(list(store.judged(NOW, NOW))) == 1
    assert list(store.judged(NOW + timedelta(seconds=1), NOW + timedelta(days=1))) == []
    assert list(store.judged(YEAR_AGO, NOW - timedelta(seconds=1))) == []


def test_outcomes_are_read_a_part_at_a_time(store: PredictionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, in order, however many are read at once; others write while they are read."""
    monkeypatch.setattr(module, "_READ_AT_ONCE", 2)
    add(store, outcome("r1"), outcome("r1", position=1), outcome("r2"))
    reading = store.judged(YEAR_AGO, NOW)
    first = next(reading)
    store.write([prediction("r3", 0, 0.4)])
    assert [first.probability, *(one.probability for one in reading)] == [0.9, 0.2, 0.6]


def test_a_store_that_fails_while_it_is_read_says_so(store: PredictionStore) -> None:
    """In the words of every other failure."""
    with store._engine.begin() as connection:
        OUTCOMES.drop(connection)
    with pytest.raises(AuditError, match=r"could not be read \("):
        judged(store)


def test_what_was_told_is_shown_with_its_prediction(store: PredictionStore) -> None:
    """All of it, in order and in UTC; other predictions of the request have none of it."""
    paris = datetime(2026, 3, 1, 13, 0, 0, 7, timezone(timedelta(hours=1)))
    dated = Outcome(request_id="r1", position=0, label="alive", time=paris)
    store.add_outcomes([outcome("r1")], received=NOW)
    store.add_outcomes([dated], received=NOW + timedelta(days=1))
    first, second = store.find("r1")
    noon = datetime(2026, 3, 1, 12, 0, 0, 7, UTC)
    assert first.outcomes == (KeptOutcome("dead", None, NOW), KeptOutcome("alive", noon, NOW + timedelta(days=1)))
    assert second.outcomes == ()


def test_a_number_is_never_given_again(store: PredictionStore) -> None:
    """Or an outcome that was left behind would be told of the next patient."""
    add(store, outcome("r2"))
    with store._engine.begin() as connection:
        connection.execute(PREDICTIONS.delete())  # as another worker does between two statements
    store.write([prediction("n1", 0, 0.5), prediction("n2", 0, 0.5), prediction("n3", 0, 0.5)])
    assert judged(store) == []


def test_outcomes_go_with_their_predictions(store: PredictionStore) -> None:
    """What is old is forgotten whole, and a new prediction never finds an old outcome."""
    add(store, outcome("r1"), outcome("r2"))
    assert store.prune(NOW + timedelta(days=366)) == 3
    with store._engine.connect() as connection:
        assert connection.execute(OUTCOMES.select()).all() == []
    store.write([prediction("r1", 0, 0.5)])
    assert judged(store) == []


def test_the_report_is_for_a_person_or_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same figures, with null where one is not defined."""
    address = f"sqlite:///{tmp_path / 'kept.db'}"
    store = PredictionStore(address, keep_days=365)
    assert main(["report", address]) == 0
    assert capsys.readouterr().out == "no prediction of these 90 days has an outcome\n"
    store.write([prediction("r1", 0, 0.75, time=datetime.now(UTC))])
    add(store, outcome("r1"))
    store.close()
    assert main(["report", address]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["model", "outcomes", "events", "AUROC", "+-", "Brier", "observed", "-", "expected"]
    assert line.split() == ["tiny", "1.0.0", "1", "1", "nan", "nan", "0.062", "+0.250"]
    assert main(["report", address, "--delay-days", "1"]) == 0
    assert capsys.readouterr().out.startswith("no prediction")
    assert main(["report", address, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["models"]
    assert told == {
        "name": MODEL["name"],
        "version": "1.0.0",
        "count": 1,
        "events": 1,
        "auroc": None,
        "auroc_error": None,
        "brier": 0.0625,
    } | {"calibration": 0.25}


def test_a_report_of_a_store_that_cannot_be_opened_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence and an exit status; nothing is made where nothing was."""
    path = tmp_path / "misspelt.db"
    assert main(["report", f"sqlite:///{path}"]) == 1
    assert capsys.readouterr().err == f"sqlite:///{path}: expected a store, found no file\n"
    assert not path.exists()
    assert main(["report", "nonsense"]) == 1
    assert "could not be opened" in capsys.readouterr().err


@pytest.mark.parametrize("days", ["-1", "nan", "1e12", "many"])
def test_a_report_of_impossible_days_says_so(days: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As any argument that does not fit."""
    with pytest.raises(SystemExit):
        main(["report", "sqlite:///none.db", "--days", days])
    assert "--days" in capsys.readouterr().err
