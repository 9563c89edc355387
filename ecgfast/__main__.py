"""``ecgfast``, ``python -m ecgfast`` and ``torchrun -m ecgfast``."""

import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        # Not above: every process that convert spawns imports this file again, and needs no
        # commands.
        from ecgfast.cli import main as run

        return run()
    except KeyboardInterrupt:  # before the command line could catch it
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
