"""Log lines: where they go and what an unexpected exception may say.

An exception's text can hold what a client sent ("could not convert string to float: ..."), so it is never logged:
its type and the places in the code it passed are.
"""

import logging
import sys
import traceback

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
logger = logging.getLogger("i2moe")


def configure_logging(level: str) -> None:
    """Send the lines of every "i2moe.*" logger to stderr, once."""
    logger.setLevel(level)
    logger.propagate = False
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT))
        logger.addHandler(handler)


def places(error: BaseException) -> str:
    """The traceback of `error` and of what caused it: types and code lines, without their texts."""
    told = f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}"
    cause = error.__cause__ or error.__context__
    return told if cause is None else f"{told}caused by {places(cause)}"
