"""The pictures of the page in docs/, of a real bundle, by the browser of this machine:

    python -m tests.service.page.pictures bundles/support2 --out docs

The example of the bundle (made of medians: nobody's record) with two values changed.
"""

import argparse
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.service.page.browser import Browser, Watched, open_browser
from tests.service.page.here import serving_here

_NUM_COLOURS = 128  # plain areas and text need no more; a third of the bytes
_WHAT_IF = {"age": "78", "alb": "1.9"}
_SIZES = {"page.png": (1280, 1500), "page-phone.png": (360, 1500)}


def main() -> None:
    """Write every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    with serving_here(arguments.bundle) as url, open_browser() as browser:
        for name, (width, height) in _SIZES.items():
            path = arguments.out / name
            path.write_bytes(small(picture(browser, url, width, height)))
            print(f"{path}: {path.stat().st_size} bytes")  # noqa: T201 - a command


def picture(browser: Browser, url: str, width: int, height: int) -> bytes:
    """The upper part of the page after a what-if."""
    with browser.page(f"{url}/", width=width, height=height) as watched:
        change(watched)
        shot: bytes = watched.page.screenshot()
        return shot


def change(watched: Watched) -> None:
    """Change values and wait for the answer."""
    watched.page.locator("#result:not([aria-busy]) .score").wait_for()
    for label, value in _WHAT_IF.items():
        watched.page.get_by_label(label, exact=True).fill(value)
    watched.page.locator(".change").wait_for()
    watched.page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0) }")


def small(png: bytes) -> bytes:
    """The picture with few colours."""
    written = BytesIO()
    few = Image.open(BytesIO(png)).convert("RGB").quantize(_NUM_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(written, "PNG", optimize=True)
    return written.getvalue()


if __name__ == "__main__":
    main()
