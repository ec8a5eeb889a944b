"""What can go wrong with a bundle or a record, as one tree.

    ValueError
      BundleError           the folder is not a bundle this version can serve
        TextEncoderError    the graph or tokenizer that embeds texts cannot be used
      InvalidRecordError    a record does not fit the feature schema; carries every problem found
    RuntimeError
      InferenceError        the graph could not be run, or answered with something that is not a number

No message here ever holds a patient's value: a problem names the place and what was expected, not what was sent. What a message
repeats of a file may be anything, so every message is made one line of printable characters and of bounded length.
"""

from typing import NamedTuple

_NUM_TOLD = 10  # problems in an error's one-line message; its `problems` hold more
_MAX_LINE, _MAX_LINES = 1000, 50  # characters of a message, and lines of one that has several


def shortened(text: str, limit: int) -> str:
    """The text, or its start and its end where it is longer than `limit` characters."""
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"


def one_line(text: str) -> str:
    """A message as one line that a log and a terminal can take, whatever it repeats."""
    line = shortened(text, _MAX_LINE)
    return line if line.isprintable() else "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in line)


def short_lines(text: str) -> str:
    """A message that tells one mistake a line: so many lines at most, each as `one_line` makes it."""
    lines = text.split("\n")
    more = [f"and {len(lines) - _MAX_LINES} more"] if len(lines) > _MAX_LINES else []
    return "\n".join([*map(one_line, lines[:_MAX_LINES]), *more])


class Problem(NamedTuple):
    """One thing wrong with one place of an input.

    `loc` is the path from the record's root, `type` a stable machine-readable word, `msg` a sentence for a person.
    """

    loc: tuple[str | int, ...]
    type: str
    msg: str

    def under(self, *prefix: str | int) -> "Problem":
        """The same problem, seen from `prefix` above the record."""
        return self._replace(loc=(*prefix, *self.loc))

    def __str__(self) -> str:
        """`labs.crea: must be a number, found a string`."""
        return f"{'.'.join(map(str, self.loc)) or 'record'}: {self.msg}"


def and_more(count: int) -> str:
    """` (and 2 more problems)` after the first of several; nothing after an only one."""
    return f" (and {count} more problem{'s' if count > 1 else ''})" if count > 0 else ""


class BundleError(ValueError):
    """The folder cannot be served: missing, damaged, of another format version, or inconsistent."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class TextEncoderError(BundleError):
    """A text encoder's files are missing, changed, or not what this version can run."""


class InvalidRecordError(ValueError):
    """A record does not fit the schema. `problems` lists everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        """Keep `problems`; the message is the first of them on one line."""
        self.problems = tuple(problems)
        more = f"; and {len(problems) - _NUM_TOLD} more" if len(problems) > _NUM_TOLD else ""
        super().__init__(one_line("; ".join(map(str, problems[:_NUM_TOLD])) + more))


class InferenceError(RuntimeError):
    """The graph failed, or its output broke a promise of the bundle."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))
