"""Do our verdicts on IFEval's constraints agree with those of lm-eval's checkers? Kind by kind, on real answers.

    python benchmarks/ifeval_agreement.py ANSWERS.jsonl --prompts input_data.jsonl [--json FILE]

ANSWERS holds `key` and `completion`, one row an answer; input_data.jsonl is IFEval's own file, which has the keys.
Needs lm-eval (tried with 0.4.13) and what its IFEval task imports (langdetect, immutabledict, nltk). Kinds whose
checkers need NLTK's data are not counted where that is not installed. lm-eval draws at random what a row does not say,
and langdetect is random too: both are seeded here before each verdict. Each disagreement is printed with both verdicts,
under what docs/instructions.md says of the kind.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import re
import runpy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FOLLOWED, NOT, NO_DATA = "followed", "not followed", "needs NLTK's data"
# From kind, parameters and answer to one of these, or to the name of the exception that the checker raised.
Checker = Callable[[str, Mapping[str, Any], str], str]


@dataclass(frozen=True)
class Verdicts:
    """Both verdicts on one constraint of one answer."""

    key: int
    kind: str
    parameters: Mapping[str, Any]
    completion: str
    ours: str
    theirs: str


def compare(
    prompts: Mapping[int, Mapping[str, Any]], answers: Iterable[Mapping[str, Any]], ours: Checker, theirs: Checker
) -> list[Verdicts]:
    """All constraints of all answers, judged twice. Raises KeyError for an answer to no prompt."""
    found = []
    for answer in answers:
        prompt, text = prompts[answer["key"]], answer["completion"]
        for kind, parameters in zip(prompt["instruction_id_list"], prompt["kwargs"], strict=True):
            verdicts = ours(kind, parameters, text), theirs(kind, parameters, text)
            found.append(Verdicts(answer["key"], kind, parameters, text, *verdicts))
    return found


def our_checker() -> Checker:
    """By reward/instructions.py."""
    score = runpy.run_path(str(ROOT / "reward" / "instructions.py"))["all_followed"]

    def check(kind: str, parameters: Mapping[str, Any], text: str) -> str:
        messages = [[{"role": "user", "content": kind}]], [[{"role": "assistant", "content": text}]]
        return FOLLOWED if score(*messages, [[kind]], [[dict(parameters)]]) == [1.0] else NOT

    return check


def their_checker() -> Checker:
    """By lm-eval's IFEval task, as its strict accuracy does. Raises ImportError where it is not installed."""
    langdetect = importlib.import_module("langdetect")
    registry = importlib.import_module("lm_eval.tasks.ifeval.instructions_registry")

    def check(kind: str, parameters: Mapping[str, Any], text: str) -> str:
        random.seed(0)
        langdetect.DetectorFactory.seed = 0
        checker = registry.INSTRUCTION_DICT[kind](kind)
        checker.build_description(**{name: value for name, value in parameters.items() if value})
        try:
            return FOLLOWED if text.strip() and checker.check_following(text) else NOT
        except LookupError:
            return NO_DATA
        except (RecursionError, re.error) as error:  # deep JSON; a keyword that is no regular expression
            return type(error).__name__

    return check


def report(verdicts: Iterable[Verdicts], differences: Mapping[str, str]) -> str:
    """A line a kind, then each disagreement under what the page says of its kind."""
    by_kind: dict[str, list[Verdicts]] = {}
    for each in verdicts:
        by_kind.setdefault(each.kind, []).append(each)
    lines = ["| kind | n | agree | only we say followed | only they do |", "| --- | --- | --- | --- | --- |"]
    apart = []
    for kind, rows in sorted(by_kind.items()):
        judged = [each for each in rows if each.theirs != NO_DATA]
        differ = [each for each in judged if each.ours != each.theirs]
        we, they = (sum(getattr(each, side) == FOLLOWED for each in differ) for side in ("ours", "theirs"))
        figures = (len(judged), len(judged) - len(differ), we, they) if judged else (0, NO_DATA, "", "")
        lines.append(f"| `{kind}` | {' | '.join(map(str, figures))} |")
        if differ:
            apart.append(f"\n{kind}: {differences.get(kind, 'the page says nothing of it')}")
        for each in differ:
            said = f"{each.ours} by ours, {each.theirs} by theirs"
            apart.append(f"- {each.key} {json.dumps(each.parameters)}: {said}\n  {_shown(each.completion)}")
    return "\n".join([*lines, *apart])


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 400 else f"{text[:200]!r} … {text[-200:]!r}"


def page_differences() -> dict[str, str]:
    """What docs/instructions.md says of each kind: there, and here."""
    page = (ROOT / "docs" / "instructions.md").read_text("utf-8").partition("## Where IFEval's checkers differ")[2]
    found = {}
    for kinds, there, here in re.findall(r"^\| (`.*?`) \| (.*) \| (.*) \|$", page.partition("\n## ")[0], re.MULTILINE):
        for kind in re.findall(r"`([a-z_]+:[a-z_]+)`", kinds):
            found[kind] = f"theirs: {there}; ours: {here}"
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="every verdict, for further counting")
    given = parser.parse_args()
    prompts = {row["key"]: row for row in _rows(given.prompts)}
    try:
        theirs = their_checker()
    except ImportError as error:
        parser.error(f"lm-eval's checkers are not installed: {error}")
    verdicts = compare(prompts, _rows(given.answers), our_checker(), theirs)
    print(report(verdicts, page_differences()))
    if given.json:
        given.json.write_text(json.dumps([asdict(each) for each in verdicts], indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
