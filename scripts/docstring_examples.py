"""Show the `>>>` lines at the end of docstrings as code: the Google style has a heading for them, this project none."""

import re
from typing import Any

import griffe


class DocstringExamples(griffe.Extension):
    """Puts `Examples:` above the doctest of each docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring and ">>> " in obj.docstring.value:
            before, prompt, code = re.split(r"^(>>> )", obj.docstring.value, maxsplit=1, flags=re.MULTILINE)
            lines = f"{prompt}{code}".splitlines()
            obj.docstring.value = before + "Examples:\n" + "\n".join(f"    {line}".rstrip() for line in lines)
