"""The README tells the truth: its commands exist, its samples parse, its tables are the code's."""

import re
from pathlib import Path

import export.__main__ as export_command
import service.bundle.__main__ as bundle_command
import training.__main__ as training_command
from service.api.settings import Settings
from tests.readme import README, blocks, commands, json_samples


def test_make_targets_exist() -> None:
    """Every make target that the README names is one of the Makefile's."""
    targets = set(re.findall(r"^([a-z-]+):", Path("Makefile").read_text(), flags=re.MULTILINE))
    named = {words[1] for words in commands() if words[0] == "make"} | set(re.findall(r"`make ([a-z-]+)`", README.read_text()))
    assert named
    assert named <= targets


def test_python_commands_parse() -> None:
    """Every `python -m ...` command of the README is understood by that command's own parser."""
    parsers = {
        "training": training_command._parser(),
        "export": export_command._run_parser(),
        "service.bundle": bundle_command._parser(),
    }
    parsed = [(words[2], words[3:]) for words in commands() if words[:2] == ["python", "-m"]]
    assert {module for module, _ in parsed} == set(parsers)
    for module, arguments in parsed:
        parsers[module].parse_args(arguments)


def test_files_named_exist() -> None:
    """Every file of this project that the README names is there."""
    named = re.findall(r"`((?:service|training|export|tests|benchmarks|examples)/[\w./]+)`", README.read_text())
    assert named
    assert [name for name in named if not Path(name).exists()] == []


def test_the_tree_is_the_tree() -> None:
    """The annotated tree names every package folder, and nothing that is not there."""
    (tree,) = [block for block in blocks("") if block.startswith("service/")]
    top = [line.split()[0].rstrip("/") for line in tree.splitlines() if not line.startswith(" ")]
    tracked = {path.name for path in Path().iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert tracked <= set(top)
    assert all(Path(name).is_dir() for name in top)


def test_settings_are_documented() -> None:
    """The table of settings lists every setting with the description it has in the code, and no other."""
    rows = dict(re.findall(r"^\| `(I2MOE_\w+)` \|[^|]*\| (.*) \|$", README.read_text(), flags=re.MULTILINE))
    assert rows == {f"I2MOE_{name.upper()}": field.description for name, field in Settings.model_fields.items()}


def test_json_samples_parse() -> None:
    """Every JSON sample is JSON."""
    assert json_samples()


def test_the_accuracy_table_is_the_logs() -> None:
    """The README's accuracy table stands, line for line, in the benchmark log."""
    table = re.findall(r"^\| (?:I2MoE|same backbone|LightGBM|logistic).*$", README.read_text(), flags=re.MULTILINE)
    assert len(table) == 5
    log = Path("benchmarks/LOG.md").read_text()
    assert [row for row in table if row not in log] == []
