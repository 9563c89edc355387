"""``ecgfast``, ``python -m ecgfast`` and ``torchrun -m ecgfast``."""

import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    # Not above: every process that convert spawns imports this file again, and needs no commands.
    from ecgfast.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
