"""Schemathesis, a fuzzer of OpenAPI documents, against the real process: no 5xx, no hang, nothing that is not promised.

It has dependencies of its own, so it is none of this project's: install it anywhere (`pip install schemathesis`) and put it on
the path or name it in SCHEMATHESIS.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving import running_server
from tests.tiny_attribution import write_attributed_bundle
from tests.tiny_bundle import TINY_UNCERTAINTY

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
def test_the_document_is_kept_whatever_is_sent(tmp_path: Path) -> None:
    """Examples, the edges of every schema, and random bodies, for every operation."""
    program = os.environ.get("SCHEMATHESIS") or shutil.which("schemathesis")
    if program is None:
        pytest.skip("schemathesis is not installed")
    bundle = write_attributed_bundle(tmp_path / "bundle", uncertainty=TINY_UNCERTAINTY)
    settings = {"I2MOE_AUDIT_URL": f"sqlite:///{tmp_path / 'kept.db'}"}
    with running_server(bundle.path, tmp_path / "server", environment=settings) as server:
        command = [program, "run", f"{server.url}/docs.json", "--url", server.url, "--checks", CHECKS]
        options = ["--max-examples", "30", "--phases", "examples,coverage,fuzzing", "--request-timeout", "15", "--seed", "1"]
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
