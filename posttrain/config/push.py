"""The section of the Hub: where promoted rounds go during a run. Decides no result."""

from __future__ import annotations

import re

from pydantic import field_validator

from posttrain.config.section import Section, complain

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


class Push(Section):
    """Pushes each promoted round to the Hub, with a tag and a card. A failed push never ends the run."""

    to: str
    """The model repository, as owner/name; created if absent."""
    private: bool = False
    """Create it private. An existing repository must be private too."""
    data: bool = False
    """Also push the rounds' kept and dropped samples and pairs, to the data set TO-data."""

    @field_validator("to")
    @classmethod
    def _allowed(cls, to: str) -> str:
        wrong = problem(to)
        if wrong:
            complain(
                (), f"the repository's name {to!r} {wrong}", "for example: to: my-name/my-model", rule="recipe-hub-name"
            )
        return to
