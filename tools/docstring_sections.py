"""Sections of docstrings for `make docs`: mkdocstrings sees one only below an empty line."""

import re
from typing import Any

import griffe

SECTION = r"\n+(?=(Args|Attributes|Returns|Raises):\n)"


class DocstringSections(griffe.Extension):
    """Puts an empty line before each section but the first, which has one."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:  # noqa: ANN401 (griffe's own)
        """Change the docstring of a function, class or module as it is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(SECTION, "\n\n", obj.docstring.value)
