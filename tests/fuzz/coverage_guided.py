"""Coverage-guided fuzzing of manifests, recipes and files of keys, where atheris is installed: no dependency of the project.

    python -m tests.fuzz.coverage_guided manifest CORPUS -max_total_time=600

Arguments after the corpus are libFuzzer's. The corpus starts with a good document. Whatever is neither read nor refused with our
own error ends the run and is left in a file.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["service", "training", "tomllib", "json"]):
    from service.access.keys import KeysError, read_keys
    from service.bundle.errors import BundleError
    from service.bundle.manifest import Manifest
    from service.bundle.store import MANIFEST_FILE, open_bundle
    from training.errors import RecipeError
    from training.recipe import load_recipe

from tests.tiny_bundle import TINY_UNCERTAINTY, tiny_manifest

RECIPE = Path(__file__).parents[2] / "training" / "recipes" / "support2.toml"
_KEYS = b'[[keys]]\nname = "a"\nsha256 = "' + b"0" * 64 + b'"\nscopes = ["predict"]\n'


def _manifest_seed() -> bytes:
    manifest: Manifest = tiny_manifest({}, uncertainty=TINY_UNCERTAINTY)
    return manifest.model_dump_json().encode()


KINDS: dict[str, tuple[str, Callable[[Path], object], type[Exception], Callable[[], bytes]]] = {
    "manifest": (MANIFEST_FILE, lambda path: open_bundle(path.parent), BundleError, _manifest_seed),
    "recipe": ("recipe.toml", load_recipe, RecipeError, RECIPE.read_bytes),
    "keys": ("keys.toml", read_keys, KeysError, lambda: _KEYS),
}


def main() -> None:
    """Fuzz one kind of file until libFuzzer's own limits."""
    kind, corpus, *options = sys.argv[1:]
    name, read, error, seed = KINDS[kind]
    path = Path(tempfile.mkdtemp()) / name
    Path(corpus).mkdir(parents=True, exist_ok=True)
    (Path(corpus) / "seed").write_bytes(seed())

    def one(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read(path)
        except error as told:
            text = str(told)
            assert all(len(line) < 2000 and line.isprintable() for line in text.split("\n")), text[:5000]

    atheris.Setup([sys.argv[0], corpus, *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
