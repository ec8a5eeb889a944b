"""`python -m service.clinical FOLDER` writes the StructureDefinitions of this service's FHIR extensions."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from service.clinical.extensions import ON_ASSESSMENT, ON_PREDICTION, Extension, structure_definition


def profiles() -> Iterator[tuple[str, str]]:
    """File name and text of every StructureDefinition."""
    contexts: tuple[tuple[str, Sequence[Extension]], ...] = (
        ("RiskAssessment", ON_ASSESSMENT),
        ("RiskAssessment.prediction", ON_PREDICTION),
    )
    for context, extensions in contexts:
        for extension in extensions:
            text = json.dumps(structure_definition(extension, context), indent=2)
            yield f"StructureDefinition-{extension.name}.json", f"{text}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="python -m service.clinical", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in profiles():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
