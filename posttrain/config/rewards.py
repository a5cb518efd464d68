"""Judges (a model behind an OpenAI-compatible server, or a local one) and rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from posttrain.config.keys import KeyedByName, KeyedUnlessDefault, NotInKey
from posttrain.config.section import MOST, Count, Few, Section, Tokens, complain


class JudgeModel(Section):
    """A judge: either `url` and `model`, or `path`, whose content is an external hash (`judge.identity`)."""

    url: Annotated[str | None, NotInKey()] = Field(default=None, pattern=r"^https?://")
    """Base address of an OpenAI-compatible server, as in http://localhost:8000/v1."""
    model: str | None = None
    """The model's name on that server."""
    api_key_env: Annotated[str | None, NotInKey()] = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the API key. The key itself is never in a recipe."""
    path: Annotated[str | None, NotInKey()] = None
    """A model on this machine: a shipped name, a folder (with a slash), or a Hub id."""
    revision: Annotated[str | None, NotInKey()] = None
    """Branch, tag or commit of a Hub id."""
    temperature: float = Field(default=0.0, ge=0, le=10)
    """Sampling temperature of the first attempt; afterwards at least 0.7."""
    max_tokens: Tokens = 512
    """Longest answer of the judge; if it is cut off: no score."""
    attempts: Few = 3
    """Attempts to get an answer of the required form; after that the text has no score."""
    max_chars: Count = 40_000
    """Longer texts (prompt and answer together, in characters) get no score."""
    body: Annotated[dict[str, Any], KeyedUnlessDefault()] = Field(default={})
    """Further fields of the request, for servers that need them; null removes a field."""
    at_once: Annotated[Few, NotInKey()] = 16
    """Concurrent requests of each process."""
    timeout: Annotated[float, NotInKey()] = Field(default=120, gt=0, le=86_400)
    """Seconds to wait for one reply before it is sent again."""
    patience: Annotated[float, NotInKey()] = Field(default=300, ge=0, le=604_800)
    """Seconds to retry one request while the server fails, before giving up."""

    @model_validator(mode="after")
    def _one_source(self) -> JudgeModel:
        if (self.url is None) == (self.path is None):
            complain((), "a judge has either `url` and `model`, or `path`", rule="recipe-one-of")
        if self.url is not None and self.model is None:
            complain(
                ("url",), "the name of the model on the server is missing", "add `model: NAME`", rule="recipe-needs-key"
            )
        for key in ("model", "api_key_env", "body"):
            if self.path is not None and getattr(self, key):
                complain((key,), f"{key!r} belongs to `url`, not to `path`", rule="recipe-belongs")
        if self.revision is not None and self.path is None:
            complain(("revision",), "'revision' belongs to `path`", rule="recipe-belongs")
        return self

    @property
    def called(self) -> str:
        """As messages name it."""
        return f"{self.model} at {self.url}" if self.url else str(self.path)


class RewardEntry(Section):
    """One reward: a function in a file, the round's reward model, or a judge with a rubric."""

    use: Annotated[str, KeyedByName()]
    """`reward-model`, a shipped reward file, or a path with a slash; a rubric ends with .md."""
    function: str | None = None
    """Which function of the file; null: the only public one."""
    weight: float = Field(default=1.0, gt=0, le=MOST)
    """Weight in the mean of the rewards that score a row."""
    only_for: Literal["preferences", "scores"] | None = Field(default=None, alias="for")
    """`preferences`: used only to label pairs; `scores`: only to score candidates and evaluations."""
    judge: Annotated[JudgeModel | None, KeyedUnlessDefault()] = None
    """The judge for the rubric; its score, scaled to 0 to 1, is the reward."""

    @model_validator(mode="after")
    def _rubric_and_judge(self) -> RewardEntry:
        if self.use.endswith(".md") and self.judge is None:
            complain(
                ("use",),
                "a rubric needs a judge model",
                "add `judge: {url: …, model: …}` beside it",
                rule="recipe-needs-key",
            )
        if self.judge is not None and not self.use.endswith(".md"):
            complain(("judge",), "a judge needs a rubric, a file that ends with .md", rule="recipe-belongs")
        if self.judge is not None and self.function is not None:
            complain(("function",), "`function` is for Python files, not for rubrics", rule="recipe-belongs")
        return self

    @property
    def is_reward_model(self) -> bool:
        return self.use == "reward-model"

    @property
    def scores(self) -> bool:
        """Whether it scores candidates."""
        return self.only_for != "preferences"

    @property
    def labels(self) -> bool:
        """Whether it is asked about pairs; the reward model learns from those labels, so it gives none."""
        return self.only_for != "scores" and not self.is_reward_model

    @property
    def compares(self) -> bool:
        """Whether rounds are compared by it where the recipe does not say by what: `watch.judges` takes no `judge`."""
        return self.judge is None

    @property
    def name(self) -> str:
        """What its figures are called: the file's stem, and the function where one is named."""
        stem = Path(self.use).stem
        return f"{stem}.{self.function}" if self.function else stem
