"""``python -m ecgfast`` and ``torchrun -m ecgfast``."""

import sys

from ecgfast.cli import main

sys.exit(main())
