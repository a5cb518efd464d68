"""The section of the Hub: where promoted rounds go during a run. Decides no result."""

from __future__ import annotations

from pydantic import field_validator

from posttrain.config.section import Section, complain


def problem(repo: str) -> str | None:
    """Why a repository's name is invalid, as the end of a sentence that begins with it; None if it is valid.

    An owner is always named.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if repo.count("/") != 1:
        return "is not of the form owner/name"
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return (
            "is not allowed on the Hub: letters, digits, '-', '_' and '.', at most 96 after the slash, without '--' or "
            "'..', no '-' or '.' at either end of a part, and no '.git' at the end"
        )
    return None


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
