"""What docs/deploy.md and docs/client.md say is there is there, and the client's examples run."""

import re
from pathlib import Path

import pytest

from service.access.keys import new_key
from tests.serving import ROOT, running_server
from tests.tiny_bundle import write_tiny_bundle

DEPLOY, CLIENT = ROOT / "docs" / "deploy.md", ROOT / "docs" / "client.md"


def test_files_and_targets_exist() -> None:
    """Every file, folder and make target that the page on deployment names."""
    text = DEPLOY.read_text()
    found = set(re.findall(r"\b((?:deploy|docs|service|benchmarks)/[\w./-]*\w)", text))
    named = {name for name in found if not name.startswith("deploy/compose/secrets/")}  # made, and not committed
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"(?m)(?:^|`)make ([a-z-]+)", text)) <= targets


@pytest.mark.slow
def test_the_clients_examples_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As printed, but for the address and the key; the last with a service that keeps predictions."""
    examples = re.findall(r"(?ms)^```python\n(.*?)^```$", CLIENT.read_text())
    assert len(examples) == 4
    key, lines = new_key("registry", ["predict", "explain", "outcomes", "audit"])
    (tmp_path / "keys.toml").write_text(lines)
    keeping = {"I2MOE_API_KEYS": str(tmp_path / "keys.toml"), "I2MOE_AUDIT_URL": f"sqlite:///{tmp_path / 'kept.db'}"}
    bundle = write_tiny_bundle(tmp_path / "bundle").path
    for name, those, environment in (("open", examples[:3], {}), ("keeping", examples[3:], keeping)):
        with running_server(bundle, tmp_path / name, environment=environment) as server:
            for example in those:
                exec(compile(example.replace("http://127.0.0.1:3000", server.url), "example", "exec"), {"KEY": key})
    printed = capsys.readouterr().out
    assert "dead 0.512497 unique:labs" in printed
    assert "INVALID_INPUT visit-7" in printed
    assert "True" in printed
    assert "(64, 2) (64, 4)" in printed
    assert "0.512497 [KeptOutcome(label='dead'" in printed
