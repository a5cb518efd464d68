"""Which names of repositories the Hub allows."""

from __future__ import annotations

import re

_LONGEST = 96
_PART = re.compile(r"\w(?:[\w.-]*\w)?", re.ASCII)


def problem(repo: str) -> str | None:
    """What is wrong with a repository's name, in words that go on after it; None when nothing is.

    As `huggingface_hub.utils.validate_repo_id`, without importing that, and with the owner always named.
    """
    if repo.count("/") != 1:
        return "is not of the form owner/name"
    if not all(_PART.fullmatch(part) for part in repo.split("/")):
        return "may hold letters, digits, '-', '_' and '.', and neither part begins or ends with '-' or '.'"
    if "--" in repo or ".." in repo:
        return "may not hold '--' or '..'"
    if repo.endswith(".git"):
        return "may not end in '.git'"
    too_long = len(repo.split("/")[1]) > _LONGEST
    return f"is longer than {_LONGEST} characters after the slash" if too_long else None
