"""`python -m service.access new NAME --scopes predict explain`: makes a key and the lines that let it in."""

import argparse
import sys
from collections.abc import Sequence

from service.access.keys import SCOPES, KeysError, new_key


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one new key; answers the exit status."""
    parser = argparse.ArgumentParser(prog="python -m service.access", description=__doc__)
    new = parser.add_subparsers(required=True).add_parser("new", help="make a key")
    new.add_argument("name", help="whose key it is, as logs and metrics will name it")
    new.add_argument("--scopes", nargs="+", choices=SCOPES, default=["predict"])
    new.add_argument("--per-second", type=float, help="requests a second on average; without it as many as the service takes")
    args = parser.parse_args(arguments)
    try:
        token, lines = new_key(args.name, args.scopes, args.per_second)
    except KeysError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"# The key of {args.name}, shown this once: {token}", file=sys.stderr)
    print(lines, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
