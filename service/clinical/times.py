"""FHIR's dateTime, date and instant (hl7.org/fhir/R4/datatypes.html): to points in time, and from a birth date to an age."""

import re
from datetime import UTC, datetime, timedelta

from service.clinical.resources import Json, child, text

_DATE_TIME = re.compile(r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2})(T[0-9:.]{8,18}(?:Z|[+-][0-9]{2}:[0-9]{2}))?)?)?")
_LARGEST_OFFSET = timedelta(hours=14)  # of any time zone
_DAYS_PER_YEAR = 365.25  # UCUM's year, `a`


def point(value: object, *, now: datetime) -> datetime | None:
    """The point in time that a FHIR dateTime stands for, with its zone; None for what is none.

    A date, a month or a year without a time of day counts as its first moment in UTC. Today may begin later in UTC than where
    the date was written, so one that lies ahead by less than the largest offset of a time zone counts as now.
    """
    match = _DATE_TIME.fullmatch(text(value))
    if match is None:
        return None
    year, month, day, time = match.groups()
    try:
        if time is not None:
            return datetime.fromisoformat(match[0])
        start = datetime(int(year), int(month or 1), int(day or 1), tzinfo=UTC)
    except ValueError:
        return None
    return now if now < start < now + _LARGEST_OFFSET else start


def observed_at(observation: Json, *, now: datetime) -> datetime | None:
    """When a measurement was true: effectiveDateTime, effectiveInstant, the end of effectivePeriod (else its start), issued."""
    period = child(observation, "effectivePeriod")
    told = (
        observation.get("effectiveDateTime"),
        observation.get("effectiveInstant"),
        period.get("end"),
        period.get("start"),
        observation.get("issued"),
    )
    return next((found for value in told if (found := point(value, now=now)) is not None), None)


def age_years(birth_date: object, *, now: datetime) -> tuple[float, str | None] | None:
    """Years of 365.25 days since a date of birth, and a remark where only its month or year is known; None for no date.

    Of a month or a year the middle is taken.
    """
    match = _DATE_TIME.fullmatch(text(birth_date))
    if match is None or match[4] is not None:
        return None
    year, month, day = match[1], match[2], match[3]
    try:
        born = datetime(int(year), int(month or 7), int(day or (15 if month else 2)), tzinfo=UTC)
    except ValueError:
        return None
    years = (now - born).total_seconds() / 86_400 / _DAYS_PER_YEAR
    if years < 0:
        return None
    known = None if day else f"the age is counted from the middle of the {'month' if month else 'year'} of birth"
    return years, known
