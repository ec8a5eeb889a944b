"""What can go wrong on the way from a checkpoint to a bundle.

ValueError
ExportError       the checkpoint, its configuration or the options cannot be exported
GraphError      the graph is not one that may be served
ParityError     the graph answers differently from the model; lists every failure
"""

from service.bundle.errors import short_lines


class ExportError(ValueError):
    """One line: what was expected, what was found."""

    def __init__(self, message: str) -> None:
        super().__init__(short_lines(message))


class GraphError(ExportError):
    """The graph breaks a rule: random or control-flow operators, fixed batch, wrong inputs or outputs."""


class ParityError(ExportError):
    """The graph does not reproduce the model. `failures` lists every case, output and difference."""

    def __init__(self, failures: list[str], atol: float) -> None:
        self.failures = tuple(failures)
        ValueError.__init__(self, f"{len(failures)} comparisons differ by more than {atol:g}:\n  " + "\n  ".join(failures))
