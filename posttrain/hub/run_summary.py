"""A run up to a round, for its cards: figures, lineage, data, and the recipe without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from posttrain.errors import DamagedError
from posttrain.recipe.recipe import yaml_text
from posttrain.report.lineage import lineage
from posttrain.report.reading import RunView
from posttrain.report.status import round_figures
from posttrain.storage.redact import LEFT_OUT, without_secrets
from posttrain.storage.store import Store

_SECRET_KEY = re.compile(r"api_?key|secret|password|passwd|credential|hub_token|access_token|auth", re.IGNORECASE)


@dataclass(frozen=True)
class RunSummary:
    """`rounds`: `status` of each round from 0 to this one; `chain`: keys from the base to this policy."""

    number: int
    recipe: Mapping[str, Any]
    rounds: list[dict[str, Any]]
    chain: list[str]
    base_key: str | None
    base_card: Mapping[str, Any]  # metadata of the base's own card, as far as it has one
    versions: Mapping[str, str]
    secrets: frozenset[str] = frozenset()

    @property
    def base(self) -> str:
        """The base model for the card: a Hub id, or a name without its folder."""
        path = self.recipe["model"]["path"]
        return path if self.base_on_hub else Path(path).name

    @property
    def base_on_hub(self) -> bool:
        path = self.recipe["model"]["path"]
        return "/" in path and not path.startswith(("/", "."))

    def recipe_text(self) -> str:
        """The resolved recipe as YAML, without secrets and folders of the machine that it ran on."""
        recipe = {key: value for key, value in self.recipe.items() if key != "push"}
        return self.without_secrets(yaml_text(_shareable(recipe, self.secrets))).strip()

    def without_secrets(self, text: str) -> str:
        return without_secrets(text, self.secrets)


def summarize(run: Store, view: RunView, number: int, secrets: frozenset[str]) -> RunSummary:
    """Summarizes the run up to round `number`. `secrets`: values that no card may contain."""
    rounds = view.rounds[: number + 1]
    origin = lineage(rounds)
    policy = Path(rounds[-1].policy or "")
    base_key = rounds[0].manifests.get("answers_dev", {}).get("input_keys", {}).get("policy")
    manifest = run.manifest(policy.name) if not policy.is_absolute() else {}
    last = manifest or next((one for each in rounds for one in each.manifests.values()), {})
    return RunSummary(
        number=number,
        recipe=_recipe(view),
        rounds=[round_figures(one) for one in rounds],
        chain=[*reversed(origin.models)] if origin else [base_key] if base_key else [],
        base_key=base_key,
        base_card=_base_card(Path(rounds[0].policy or "")),
        versions=last.get("versions", {}),
        secrets=secrets,
    )


def _recipe(run: RunView) -> Mapping[str, Any]:
    path = run.root / "recipe.yaml"
    try:
        read = YAML(typ="safe", pure=True).load(run.recipe_yaml)
    except YAMLError as error:
        raise DamagedError(f"{path}: cannot be read; posttrain round writes it anew") from error
    if not isinstance(read, dict) or not isinstance(read.get("model"), dict):
        raise DamagedError(f"{path}: not a recipe; posttrain round writes it anew")
    return read


def _shareable(value: Any, secrets: frozenset[str]) -> Any:
    """A recipe's value without local details: the last name of a path, only the kind of a server. Secrets go before
    YAML writes the value, which may quote it so that they are no longer found."""
    if isinstance(value, dict):
        hidden = {key for key, inner in value.items() if isinstance(inner, str) and _SECRET_KEY.search(str(key))}
        if "kind" in value and ("url" in value or "start" in value):  # a server's command or address can hold keys
            hidden |= {key for key in ("url", "start") if value.get(key)}
        return {key: LEFT_OUT if key in hidden else _shareable(inner, secrets) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shareable(inner, secrets) for inner in value]
    if isinstance(value, str) and value.startswith(("/", "~")) and "\n" not in value:
        value = f"./{Path(value).name}"
    return without_secrets(value, secrets) if isinstance(value, str) else value


def _base_card(folder: Path) -> Mapping[str, Any]:
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        return ModelCard.load(path).data.to_dict()
    except Exception:  # somebody else's card, in whatever shape: nothing hangs on it
        return {}
