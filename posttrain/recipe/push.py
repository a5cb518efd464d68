"""The section of the Hub: where promoted rounds go during a run. Decides no result."""

from __future__ import annotations

from pydantic import Field, field_validator

from posttrain.hub import names
from posttrain.recipe.section import Section, complain


class Push(Section):
    """Each promoted round goes to the Hub, with a tag and a card. A push that fails never ends the run."""

    to: str = Field(description="The model repository, as owner/name; made if it is not there.")
    private: bool = Field(default=False, description="Made private. One that is there already must be private too.")
    data: bool = Field(
        default=False, description="The rounds' kept and dropped samples and pairs too, to the data set TO-data."
    )

    @field_validator("to")
    @classmethod
    def _allowed(cls, to: str) -> str:
        wrong = names.problem(to)
        if wrong:
            complain(
                (), f"the repository's name {to!r} {wrong}", "for example: to: my-name/my-model", rule="recipe-hub-name"
            )
        return to
