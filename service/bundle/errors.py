"""What can go wrong with a bundle or a record, as one tree.

    ValueError
      BundleError           the folder is not a bundle this version can serve
        TextEncoderError    the graph or tokenizer that embeds texts cannot be used
      InvalidRecordError    a record does not fit the feature schema; carries every problem found
    RuntimeError
      InferenceError        the graph could not be run, or answered with something that is not a number

No message here ever holds a patient's value: a problem names the place and what was expected, not what was sent.
"""

from typing import NamedTuple

_NUM_TOLD = 10  # problems in an error's one-line message; its `problems` hold more


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


class TextEncoderError(BundleError):
    """A text encoder's files are missing, changed, or not what this version can run."""


class InvalidRecordError(ValueError):
    """A record does not fit the schema. `problems` lists everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        """Keep `problems`; the message is the first of them on one line."""
        self.problems = tuple(problems)
        more = f"; and {len(problems) - _NUM_TOLD} more" if len(problems) > _NUM_TOLD else ""
        super().__init__("; ".join(map(str, problems[:_NUM_TOLD])) + more)


class InferenceError(RuntimeError):
    """The graph failed, or its output broke a promise of the bundle."""
