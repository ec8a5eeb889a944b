"""Writing files so that a reader sees the old one or the new one, never half of it."""

from pathlib import Path


def write_text(text: str, path: Path) -> None:
    """Write `text` to a temporary neighbour, then rename it to `path`; a failure leaves nothing behind."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
