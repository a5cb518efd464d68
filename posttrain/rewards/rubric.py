"""A rubric: `reward/NAME.md`, the criteria of a judge.

    ---
    lowest: 1
    highest: 5
    ---
    You judge answers of an assistant. …

The front matter says which answers there are: whole numbers from `lowest` to `highest`, or `tags: N`, up to N short
phrases. The rest is sent to the judge as it is. How the judged text is quoted and the form of the judge's answer are
not part of the rubric: see `judge_prompt`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from posttrain import shipped
from posttrain.errors import RewardError, in_file

_HINT = "it begins with ---, then `lowest: 1` and `highest: 5` (or `tags: 5`), then ---, then the text"


_LARGEST = 1_000_000  # bytes; every judged text is sent with the whole rubric
_LONGEST_HEAD = 1000  # characters between the lines of dashes
_HIGHEST = 999_999  # six digits: what `form` reads of an answer


@dataclass(frozen=True)
class Rubric:
    """`lowest` and `highest`: the scale; both 0 for tags. `tags`: the most tags; 0 for a score."""

    file: str
    text: str
    lowest: int
    highest: int
    tags: int
    sha256: str

    @property
    def name(self) -> str:
        return Path(self.file).stem

    def scaled(self, score: int) -> float:
        """The score on a scale from 0 to 1."""
        return (score - self.lowest) / (self.highest - self.lowest)


def load(use: str) -> Rubric:
    """Loads a rubric by shipped name or path. Raises RewardError with the line if it cannot be read."""
    path = shipped.locate("reward", use)
    with in_file(path):
        if path.exists() and not (path.is_file() and path.stat().st_size <= _LARGEST):
            raise RewardError(f"no regular file of at most {_LARGEST:,} bytes", rule="judge-rubric-unreadable")
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            raise RewardError("not UTF-8 text", rule="judge-rubric-unreadable") from None
        except OSError as error:
            raise RewardError(f"cannot be read: {error.strerror}", rule="judge-rubric-unreadable") from None
        lines = text.splitlines()
        if path.suffix != ".md" or not lines or lines[0].strip() != "---" or "---" not in map(str.strip, lines[1:]):
            raise RewardError("not a rubric", hint=_HINT, rule="judge-rubric-form")
        end = 1 + [line.strip() for line in lines[1:]].index("---")
        lowest, highest, tags = _scale("\n".join(lines[1:end]))
        body = "\n".join(lines[end + 1 :]).strip()
        if not body:
            raise RewardError("the rubric has no text", line=end + 1, hint=_HINT, rule="judge-rubric-form")
        return Rubric(str(path), body, lowest, highest, tags, hashlib.sha256(text.encode()).hexdigest())


def load_for(what: str, use: str) -> Rubric:
    """Loads a rubric with tags if `what` is `tags`, else one with a score. Raises RewardError as `load`."""
    if what != "tags":
        return load_scoring(use)
    rubric = load(use)
    if not rubric.tags:
        message, hint = "this rubric asks for a score, not for tags", "tags.md has `tags: 6`"
        raise RewardError(message, file=rubric.file, hint=hint, rule="judge-rubric-kind")
    return rubric


def load_scoring(use: str) -> Rubric:
    """Loads a rubric with a score. Raises RewardError as `load` does, and if it has tags."""
    rubric = load(use)
    if rubric.tags:
        raise RewardError(
            "this rubric asks for tags, not for a score", file=rubric.file, hint=_HINT, rule="judge-rubric-kind"
        )
    return rubric


def _scale(head: str) -> tuple[int, int, int]:
    try:  # a longer head says nothing that counts
        given = YAML(typ="safe", pure=True).load(head if len(head) <= _LONGEST_HEAD else "")
    except (YAMLError, ValueError, RecursionError) as error:  # the last two: numbers and nesting without end
        said = (str(error).splitlines() or [""])[0]
        raise RewardError(f"not valid YAML: {said}", hint=_HINT, rule="judge-rubric-form") from None
    given = given if isinstance(given, dict) else {}
    numbers = {name: value for name, value in given.items() if isinstance(value, int) and not isinstance(value, bool)}
    if numbers == given and set(given) == {"tags"} and 0 < numbers["tags"] <= _HIGHEST:
        return 0, 0, numbers["tags"]
    lowest, highest = numbers.get("lowest", -1), numbers.get("highest", -1)
    if numbers == given and set(given) == {"lowest", "highest"} and 0 <= lowest < highest <= _HIGHEST:
        return lowest, highest, 0
    raise RewardError(
        "the rubric does not say which answers are possible", line=1, hint=_HINT, rule="judge-rubric-form"
    )
