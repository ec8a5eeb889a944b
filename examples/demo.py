"""Serves a bundle, sends it one real patient that the model has never seen, and prints the answer for a person.

    python -m examples.demo --run runs/support2 --bundle bundles/support2 [--patient 0] [--port 3000]

The patient is a row of the run's test split. The server keeps running until Ctrl-C.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from training.checkpoint import load_checkpoint
from training.data.dataset import load_dataset

_READY_SECONDS = 60.0
_BAR_WIDTH = 20


def unseen_patient(run: Path, number: int) -> tuple[dict[str, Any], str]:
    """A record of the run's test split without its missing values, and what became of the patient."""
    checkpoint = load_checkpoint(run)
    dataset = load_dataset(
        checkpoint.recipe.data, Path(), seed=checkpoint.recipe.train.seed, missing=checkpoint.recipe.model.missing
    )
    row = int(dataset.splits["test"][number])
    record = {
        modality: {name: value for name, value in values.items() if value is not None}
        for modality, values in dataset.record(row).items()
    }
    return record, dataset.task.labels[dataset.target[row]]


def server_command(port: int) -> list[str]:
    """A server for this machine alone: it has no keys, so whoever reached its port could ask."""
    return [sys.executable, "-m", "bentoml", "serve", "service.api:I2MoEService", "--host", "127.0.0.1", "--port", str(port)]


def start_server(bundle: Path, port: int) -> subprocess.Popen[bytes]:
    """`bentoml serve`, in a process group of its own."""
    # A home of its own: servers that share one delete each other's metrics.
    home = tempfile.mkdtemp(prefix="i2moe-demo-")
    environment = {"BENTOML_HOME": home, **os.environ, "I2MOE_BUNDLE": str(bundle), "BENTOML_DO_NOT_TRACK": "1"}
    return subprocess.Popen(server_command(port), env=environment, start_new_session=True)


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    """Ask /readyz until it answers 200; exits when the server stopped or took too long."""
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit(f"the server stopped with status {server.returncode}; is the port taken?")
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=2).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    sys.exit(f"the server was not ready within {_READY_SECONDS:g} s")


def post(url: str, document: dict[str, Any]) -> dict[str, Any]:
    """POST JSON, answer JSON."""
    request = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def describe(record: dict[str, Any], answer: dict[str, Any], outcome: str) -> str:
    """The patient, the risk and its explanation, as lines of text."""
    prediction = answer["predictions"][0]
    explanation = prediction["explanation"]
    lines = ["", f"Patient {prediction['id']} (from the test split: the model has not seen this patient)"]
    lines += [f"  {modality:<14}" + ", ".join(f"{k} {v}" for k, v in values.items()) for modality, values in record.items()]
    lines += ["", f"  {explanation['summary']}", f"  What became of the patient after one year: {outcome}.", ""]
    lines += [f"  {'expert':<22}{'weight':>8}{'own risk':>10}{'contribution':>14}   share of contribution"]
    for expert in explanation["experts"]:
        bar = "#" * round(_BAR_WIDTH * expert["contribution_share"])
        lines.append(
            f"  {expert['name']:<22}{expert['weight']:>8.2f}{expert['probability']:>10.2f}{expert['contribution']:>+14.3f}"
            f"   {expert['contribution_share']:>4.0%} {bar}"
        )
    lines += [f"  warning: {warning}" for warning in prediction["warnings"]]
    missing = ", ".join(prediction["missing"]) or "nothing"
    lines += ["", f"  missing: {missing}", f"  Contributions speak for or against the predicted label, {prediction['label']}."]
    return "\n".join(lines)


def main() -> None:
    """Serve, ask, print, keep serving."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--patient", type=int, default=0, help="position in the test split")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--once", action="store_true", help="stop after the answer")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the server also when we are told to stop
    record, outcome = unseen_patient(args.run, args.patient)
    url = f"http://127.0.0.1:{args.port}"
    server = start_server(args.bundle, args.port)
    try:
        wait_until_ready(url, server)
        body = {"instances": [{"id": f"support2-test-{args.patient}", **record}]}
        print(describe(record, post(f"{url}/predict", body), outcome))
        print(f"\nServing on {url}: open it in a browser, or ask it from a program. Ctrl-C stops it. Try:\n")
        print(f"  curl -s {url}/predict -H 'Content-Type: application/json' -d '{json.dumps(body)}'\n", flush=True)
        if not args.once:
            server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


if __name__ == "__main__":
    main()
