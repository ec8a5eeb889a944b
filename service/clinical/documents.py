"""DocumentReferences with their text inside: inline base64 of type text/plain. URLs are never fetched."""

import base64
import binascii
from collections.abc import Sequence
from datetime import UTC, datetime

from service.clinical.observations import UnusableError
from service.clinical.resources import Json, Sourced, child, loinc_codes, objects, text
from service.clinical.times import point

_EARLIEST = datetime.min.replace(tzinfo=UTC)


def status_problem(document: Json) -> str | None:
    """Why a document must not be read; None where it may."""
    if text(document.get("status")) != "current":
        return "is not current"
    return "was entered in error" if text(document.get("docStatus")) == "entered-in-error" else None


def newest_first(documents: Sequence[Sourced], loinc: Sequence[str], *, now: datetime) -> list[Sourced]:
    """The documents of these LOINC types that were written until now; those without a date are the oldest."""
    wanted = set(loinc)
    dated = []
    for sourced in documents:
        date = sourced.resource.get("date")
        time = _EARLIEST if date is None else point(date, now=now)
        if wanted & set(loinc_codes(sourced.resource.get("type"))) and time is not None and time <= now:
            dated.append((time, sourced))
    return [sourced for _, sourced in sorted(dated, key=lambda pair: pair[0], reverse=True)]


def plain_text(document: Json) -> str:
    """The text of a document's plain attachments, in order. Raises `UnusableError`."""
    attachments = [child(content, "attachment") for content in objects(document.get("content"))]
    plain = [attachment for attachment in attachments if _is_plain(attachment) and text(attachment.get("data"))]
    if not plain:
        raise UnusableError("has no inline attachment of type text/plain; what lies behind a URL is not fetched")
    return "\n".join(_decoded(attachment) for attachment in plain)


def _is_plain(attachment: Json) -> bool:
    return text(attachment.get("contentType")).partition(";")[0].strip().lower() == "text/plain"


def _decoded(attachment: Json) -> str:
    charset = text(attachment.get("contentType")).lower().partition("charset=")[2].strip('" ') or "utf-8"
    if charset not in ("utf-8", "us-ascii", "iso-8859-1"):
        raise UnusableError("has a charset that is none of utf-8, us-ascii and iso-8859-1")
    try:
        return base64.b64decode("".join(text(attachment.get("data")).split()), validate=True).decode(charset)
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise UnusableError("has an attachment that is not text in base64") from None
