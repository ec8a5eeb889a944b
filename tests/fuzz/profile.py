"""How much is fuzzed, and what every outcome is held to.

A hundred files for each property, always the same ones, unless I2MOE_FUZZ_EXAMPLES says how many others are to be drawn.
"""

import os

from hypothesis import HealthCheck, Phase, settings

from tests.fuzz.worker import Answer

_EXAMPLES = "I2MOE_FUZZ_EXAMPLES"
MAX_LINE = 2000  # characters of a message, whatever the file held
MAX_LINES = 60  # of messages that tell one problem a line
MAX_GROWTH_KB = 1 << 20  # of memory, for one file of some kB


def fuzz(share: float = 1.0) -> settings:
    """The settings of a property that is worth this share of the usual number of files."""
    num_examples = max(1, round(int(os.environ.get(_EXAMPLES, "100")) * share))
    phases = (Phase.explicit, Phase.generate, Phase.shrink)
    return settings(
        max_examples=num_examples,
        derandomize=_EXAMPLES not in os.environ,
        deadline=None,
        database=None,
        phases=phases,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )


def check(answer: Answer, *, lines: int = 1, may_grow: bool = False) -> None:
    """Either it worked, or it was refused in so many short lines at most.

    `may_grow`: a graph takes what it asks for, as long as there is so much.
    """
    assert not answer.died, answer.died
    assert not answer.escaped, answer.escaped
    assert may_grow or answer.growth_kb < MAX_GROWTH_KB, f"took {answer.growth_kb} kB for one small file"
    assert answer.status in {0, 1}, answer
    if answer.status == 1:
        errors = [line for line in answer.told.splitlines() if not line.endswith(": treated as missing")]
        assert 0 < len(errors) <= lines, answer.told[:10_000]
        assert errors[0].startswith("error: "), answer.told[:10_000]
        assert all(line.isprintable() and len(line) <= MAX_LINE for line in errors), answer.told[:10_000]
