"""`python -m deploy.image`: run the service's image as a cluster would, look at it from inside, stop it. Last line JSON.

    python -m deploy.image i2moe-service:cpu --bundle bundles/support2 [--bundle-image i2moe-bundle:1.0.0] [--engine docker]

The container has no network, a read-only root, /tmp without execution, no capability and 1 GiB, as deploy/compose and
deploy/kubernetes have it. With `--bundle-image` the model is copied out of that image first, as the init container does.
The exit status is 1 where the image breaks a promise, each told on standard error.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.image.checks import problems, stopped
from deploy.image.engine import Engine, EngineError

INSIST = "I2MOE_REQUIRE_GPU"


def trial(engine: Engine, image: str, bundle: Path) -> tuple[dict[str, Any], list[str]]:
    """Figures of one container's life, and the promises it broke."""
    described = engine.image(image)
    with engine.service(image, bundle, {}) as container:
        _, ready_s = container.wait()
        container.execute(described.health or ("true",))
        found = container.look()
        status, stop_s = container.stop()
    figures = {
        "image": image,
        "labels": {name: label for name, label in described.labels.items() if name.startswith("org.")},
        "user": described.user,
        "size_mb": found["size_mb"],
        "parts_mb": found["parts_mb"],
        "model": (found["answers"]["/predict"]["body"] or {}).get("model"),
        "unresolved_cuda": found["unresolved_cuda"],
        "ready_s": round(ready_s, 2),
        "resident_mb": [process["resident_mb"] for process in found["processes"]],
        "stop_status": status,
        "stop_s": round(stop_s, 2),
    }
    return figures, problems(described, found) + stopped(status, stop_s)


def refusal(engine: Engine, image: str, bundle: Path) -> str:
    """What /readyz says where a GPU is insisted on and none is there; the reason must be told, not only that it waits."""
    with engine.service(image, bundle, {INSIST: "true"}) as container:
        answer: dict[str, Any] = json.loads(container.wait(503, INSIST)[0])
        return str(answer["error"])


def unpacked(engine: Engine, image: str, bundle: Path, target: Path) -> list[str]:
    """Copy the model out of its image as the init container does; how it differs from the bundle, if it does."""
    target.chmod(0o777)  # the init container's user is another one than ours
    engine.run(image, f"--volume={target}:/to", command=("cp", "-r", "/bundle/.", "/to/"))
    expected, found = contents(bundle), contents(target)
    return [] if found == expected else [f"{image} has {sorted(found)}, expected the bundle's {sorted(expected)}, byte for byte"]


def contents(folder: Path) -> Mapping[str, bytes]:
    """Every file's bytes by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def try_image(engine: Engine, *, image: str, bundle: Path, bundle_image: str | None) -> tuple[dict[str, Any], list[str]]:
    """The whole trial: the model's image where there is one, the service's, and its refusal to do without a GPU."""
    with tempfile.TemporaryDirectory(prefix="i2moe-try-") as folder:
        broken = unpacked(engine, bundle_image, bundle, Path(folder)) if bundle_image else []
        figures, more = trial(engine, image, Path(folder) if bundle_image else bundle)
        refused = refusal(engine, image, bundle)
    return {**figures, "bundle_image": bundle_image, "without_gpu": refused}, broken + more


def main() -> int:
    """Try, tell, and answer the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", help="the service's image, built by `make image`")
    parser.add_argument("--bundle", type=Path, required=True, help="the model to serve")
    parser.add_argument("--bundle-image", help="an image of the same model, built by `make bundle-image`")
    parser.add_argument("--engine", default="docker", help="docker or podman")
    args = parser.parse_args()
    try:
        engine = Engine(args.engine)
        figures, broken = try_image(engine, image=args.image, bundle=args.bundle, bundle_image=args.bundle_image)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for problem in broken:
        print(f"error: {problem}", file=sys.stderr)
    print(json.dumps({**figures, "problems": len(broken)}))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
