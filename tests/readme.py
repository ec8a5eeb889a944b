"""The README as data: its code blocks, commands and samples."""

import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

README = Path("README.md")


class Curl(NamedTuple):
    """One curl command of the README."""

    path: str
    body: str


def blocks(language: str) -> list[str]:
    """The fenced code blocks of one language, in order."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [text for tag, text in fenced if tag == language]


def json_samples() -> list[Any]:
    """Every JSON sample, parsed."""
    return [json.loads(block) for block in blocks("json")]


def commands() -> list[list[str]]:
    """Every shell command, split into words, without comments."""
    lexed = [shlex.split(block, comments=True) for block in blocks("sh") if block.startswith("curl")]
    lines = [line for block in blocks("sh") if not block.startswith("curl") for line in block.splitlines()]
    return lexed + [words for line in lines if (words := shlex.split(line, comments=True))]


def curl_commands() -> list[Curl]:
    """Every curl command's path and body."""
    found = []
    for words in commands():
        if words[0] == "curl":
            url = next(word for word in words if word.startswith("http"))
            found.append(Curl(urlsplit(url).path, words[words.index("-d") + 1]))
    return found
