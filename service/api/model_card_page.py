"""The model card as a page for a clinician: plain HTML, printable, no script. Every text is escaped on its way in."""

from collections.abc import Iterator
from html import escape
from typing import Any

_ICON = "data:,"  # or the browser would ask for /favicon.ico


def card_page(card: dict[str, Any]) -> str:
    """The whole document."""
    name = escape(card["model"]["name"])
    body = "\n".join((_head(card), *map(_group, card["source_attributes"].values()), *_further(card)))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Model card: {name}</title>
<link rel="icon" href="{_ICON}">
<link rel="stylesheet" href="static/page.css">
</head>
<body class="card">
<p class="notice">{escape(card["notice"])}</p>
<main>
{body}
</main>
</body>
</html>
"""


def _head(card: dict[str, Any]) -> str:
    model, counts = card["model"], card["counts"]
    told = ", ".join(f"{number} {status}" for status, number in counts.items())
    return f"""<h1>Model card: {escape(model["name"])}</h1>
<p>Version {escape(model["version"])}, made on {escape(card["created"])}. Predicts {escape(card["outcome"])}. \
<a href="./">Try it</a> <a href="docs.json">For programs</a></p>
<p>{escape(card["standard"]["status"])} Citation: {escape(card["standard"]["citation"])}.</p>
<p>Of {sum(counts.values())} attributes: {told}.</p>"""


def _group(group: dict[str, Any]) -> str:
    items = "\n".join(map(_attribute, group["attributes"].values()))
    return f"<section>\n<h2>{escape(group['title'])}</h2>\n<dl>\n{items}\n</dl>\n</section>"


def _attribute(attribute: dict[str, Any]) -> str:
    text = f"<p>{escape(attribute['text'])}</p>" if attribute["text"] else ""
    absent = "" if attribute["status"] == "provided" else _absent(attribute)
    return f"<dt>{escape(attribute['title'])}</dt>\n<dd>{text}{absent}</dd>"


def _absent(attribute: dict[str, Any]) -> str:
    status = str(attribute["status"]).capitalize()
    return f'<p class="absent"><strong>{status}.</strong> {escape(attribute["asked_of"])}</p>'


def _further(card: dict[str, Any]) -> Iterator[str]:
    """What no source attribute asks for."""
    yield "<section>\n<h2>Beyond the source attributes</h2>"
    yield from map(_metrics, card["metrics"].items())
    yield "<dl>"
    for title, text in _facts(card):
        yield f"<dt>{escape(title)}</dt><dd>{escape(text)}</dd>"
    yield "</dl>\n</section>"


def _metrics(split_and_values: tuple[str, dict[str, Any]]) -> str:
    split, values = split_and_values
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{_figure(v["value"])}</td><td>{_interval(v)}</td></tr>'
        for name, v in values.items()
    )
    head = '<tr><th scope="col">Figure</th><th scope="col">Value</th><th scope="col">95 % interval</th></tr>'
    return f"<table>\n<caption>On {escape(split)} data</caption>\n{head}\n{rows}\n</table>"


def _interval(value: dict[str, Any]) -> str:
    return "" if value["low"] is None or value["high"] is None else f"{_figure(value['low'])} to {_figure(value['high'])}"


def _figure(value: float) -> str:
    return f"{value:.3f}"


def _facts(card: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Licence", card["licence"] or "Not provided."
    yield "Calibration", f"{card['calibration']['method']}, fitted on {card['calibration']['num_rows']} rows."
    for line in card["explanations"]:
        yield "Explanations, checked", line
    parity = card["parity"]
    yield "Same as the trained model", f"Within {parity['max_abs_diff']:.1e} over {parity['cases']} cases."
    yield "Graph served", f"sha256 {card['model']['sha256']}, on {card['model']['provider']}."
