"""Entry point of the `normkit` command, kept apart so that a missing extra gives a line, not a traceback."""

from __future__ import annotations

import os
import sys

from normkit.errors import MissingExtraError, optional


def main() -> None:
    """Run the command line. `normkit env` works without the extra as well: it says what is missing."""
    try:
        optional("typer", "lab")
        optional("rich", "lab")
    except MissingExtraError as missing:
        if sys.argv[1:] != ["env"]:
            sys.exit(_refuse(missing))
        from normkit.environment import describe

        print(describe())
        return
    from normkit.cli import run

    code = run(sys.argv[1:])
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # DistributedDataParallel keeps its group, and with it threads of gloo, to the end of the process. One that lets
        # go of a tensor while Python ends aborts the process, now and then (torch 2.13): Python does not get to end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _refuse(missing: MissingExtraError) -> int:
    print(f"normkit: {missing}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
