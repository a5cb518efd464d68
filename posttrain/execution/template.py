"""Templates of scripts and the like, with `%{name}` for what is filled in: `$` is the shell's."""

from __future__ import annotations

import string


class Template(string.Template):
    """As `string.Template`, with `%` in place of `$`."""

    delimiter = "%"
