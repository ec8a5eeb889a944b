"""Runs inside the container, read from stdin by the image's own Python, and prints what it finds as one line of JSON.

Needs the standard library alone, and judges nothing: `deploy.image.checks` does. With `wait STATUS TEXT` it only waits for such
an answer of /readyz.
"""

import contextlib
import ctypes
import http.client
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

READY_S = 120.0
# Compilers, package managers and downloaders: what a break-in would look for first.
TOOLS = ("cc", "c++", "gcc", "g++", "clang", "ld", "make", "pip", "pip3", "uv", "conda", "git", "curl", "wget")
MODULES = ("pip", "setuptools", "wheel")
BIG_MB = 5.0
MB = 1e6


def ask(method: str, path: str, document: object = None) -> tuple[int, str]:
    """Status and text of one request to the service; raises `OSError` where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["BENTOML_PORT"]), timeout=10)
    try:
        body = None if document is None else json.dumps(document)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def wait(status: int, text: str) -> None:
    """Until /readyz answers `status` and tells `text`; exits with its last answer after two minutes."""
    found, told, deadline = 0, "nobody listened", time.monotonic() + READY_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            found, told = ask("GET", "/readyz")
        if found == status and text in told:
            print(told)
            return
        time.sleep(0.02)
    sys.exit(f"/readyz did not answer {status} {text} within {READY_S:g} s: {told}")


def example() -> dict[str, Any]:
    """The bundle's own record."""
    record: dict[str, Any] = json.loads(Path(os.environ["I2MOE_BUNDLE"], "manifest.json").read_text())["example"]["record"]
    return record


def answers() -> dict[str, Any]:
    """What the routes say; /predict is asked for the bundle's own example."""
    found = {path: ask("GET", path) for path in ("/livez", "/readyz", "/model", "/metrics")}
    found["/predict"] = ask("POST", "/predict", {"instances": [example()]})
    series = [line for line in found["/metrics"][1].splitlines() if line.startswith("i2moe_")]
    told = {path: {"status": status, "body": _document(body)} for path, (status, body) in found.items()}
    return {**told, "num_series": len(series)}


def _document(body: str) -> Any:
    """JSON, or nothing of an answer that is none."""
    return json.loads(body) if body.startswith("{") else None


def scored_files() -> dict[str, Any]:
    """How many rows the image's own command scores into a file of each kind and reads back, or its last words."""
    from service.bundle.table_files import read_table

    bundle, found = os.environ["I2MOE_BUNDLE"], dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.jsonl")
        rows.write_text(json.dumps(example()) + "\n")
        for kind in ("parquet", "csv"):
            told = Path(folder, f"told.{kind}")
            command = [sys.executable, "-m", "service.bundle", "predict", bundle, str(rows), "--out", str(told)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found[kind] = read_table(told).num_rows if done.returncode == 0 else done.stderr.strip()[-200:]
    return found


def processes() -> list[dict[str, Any]]:
    """Every process but this one: user, capabilities, memory."""
    return [process(folder) for folder in Path("/proc").glob("[0-9]*") if folder.name != str(os.getpid())]


def process(folder: Path) -> dict[str, Any]:
    """One of them, by its folder in /proc."""
    lines = (line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    status = {name: value.split() for name, value in lines}
    return {
        "command": (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:80].strip(),
        "uids": sorted({int(uid) for uid in status["Uid"]}),
        "capabilities": {name: int(status[name][0], 16) for name in ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb")},
        "no_new_privs": int(status["NoNewPrivs"][0]),
        "seccomp": int(status["Seccomp"][0]),
        "resident_mb": round(int(status["VmRSS"][0]) * 1024 / MB, 1),
    }


def walk(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file and folder that this user can list, without what the kernel makes up."""
    for folder, folders, files in os.walk(top):
        if Path(folder) == top:
            folders[:] = [name for name in folders if name not in {"proc", "sys"}]
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            yield path, path.lstat()


def contents(top: Path = Path("/")) -> dict[str, Any]:
    """Sizes of the image's parts, what can be written, what runs as another user, what must be compiled at each start."""
    device, seen, sizes = top.lstat().st_dev, set[int](), Counter[str]()
    imported = (top / "opt", top / sysconfig.get_path("stdlib").lstrip("/"))
    writable, setuid, uncompiled = [], [], 0
    for path, found in walk(top):
        is_file = stat.S_ISREG(found.st_mode)
        if (is_file or stat.S_ISDIR(found.st_mode)) and os.access(path, os.W_OK):
            writable.append(str(path))
        if found.st_dev != device or not is_file or found.st_ino in seen:  # of a mount, or one more name of a file
            continue
        seen.add(found.st_ino)
        sizes[_part(path.relative_to(top))] += found.st_size
        setuid += [str(path)] if found.st_mode & (stat.S_ISUID | stat.S_ISGID) else []
        uncompiled += path.suffix == ".py" and any(map(path.is_relative_to, imported)) and not _is_compiled(path, found)
    return {
        "size_mb": round(sizes.total() / MB, 1),
        "parts_mb": {part: round(size / MB, 1) for part, size in sizes.most_common() if size >= BIG_MB * MB},
        "writable": sorted(writable),
        "setuid": sorted(setuid),
        "num_uncompiled": uncompiled,
    }


def _part(path: Path) -> str:
    """A package of opt/venv/lib/python3.x/site-packages, another folder of opt, or `base` for what the base image brought."""
    parts = path.parts
    if parts[0] != "opt":
        return "base"
    return parts[5] if parts[4:5] == ("site-packages",) and len(parts) > 6 else "/".join(parts[:2])


def _is_compiled(path: Path, found: os.stat_result) -> bool:
    """Whether Python would take the compiled file: it names the source's time and size."""
    compiled = Path(importlib.util.cache_from_source(str(path)))
    expected = b"\0\0\0\0" + int(found.st_mtime).to_bytes(4, "little") + found.st_size.to_bytes(4, "little")
    return compiled.is_file() and compiled.read_bytes()[:16] == importlib.util.MAGIC_NUMBER + expected


def tools() -> list[str]:
    """What of TOOLS and MODULES is here."""
    programs = [shutil.which(tool) for tool in TOOLS]
    return [program for program in programs if program] + [name for name in MODULES if importlib.util.find_spec(name)]


def unresolved_cuda() -> str | None:
    """What ONNX Runtime's CUDA part lacks, in the loader's words; None where it is not in the image or lacks nothing."""
    import onnxruntime

    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not library.exists():
        return None
    onnxruntime.preload_dlls()
    ctypes.CDLL(str(library.with_name("libonnxruntime_providers_shared.so")), ctypes.RTLD_GLOBAL)
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return None


def mounts() -> dict[str, dict[str, bool]]:
    """Which of the container's folders cannot be written, and where nothing can be started."""
    flags = {path: os.statvfs(path).f_flag for path in ("/", "/tmp", os.environ["I2MOE_BUNDLE"])}
    return {path: {"read_only": bool(flag & os.ST_RDONLY), "noexec": bool(flag & os.ST_NOEXEC)} for path, flag in flags.items()}


def runs_from_tmp() -> bool:
    """Whether a program that was put into /tmp can be started."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program")
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        try:
            subprocess.run([program], check=True)
        except OSError:
            return False
        return True


def main() -> None:
    """Look at the service first and at its files after, so that reading them does not disturb the figures."""
    found = {"answers": answers(), "processes": processes(), "mounts": mounts(), "runs_from_tmp": runs_from_tmp()}
    found["files"] = scored_files()
    print(json.dumps({**found, **contents(), "tools": tools(), "unresolved_cuda": unresolved_cuda()}))


if __name__ == "__main__":
    wait(int(sys.argv[2]), sys.argv[3]) if sys.argv[1:2] == ["wait"] else main()
