"""Rounds of the quickstart whose samples are poisoned after they were scored, for `ablation.py --study filters`.

    python benchmarks/poisoning.py --n 3 --run runs/poisoned --set 'filters=[…]'

Of every 10 samples 3 are replaced by junk: the best answer to the prompt, spoilt in one of the ways of `JUNK`, with
that answer's score, as if the rewards overlooked the fault. Of equal scores best-of-k takes the first, so with K = 8
about two thirds of what SFT would read are junk. Only the filters read the poisoned table; scores as they were stay
beside it, under the run's `artifacts/`.

What this does not cover: pairs for DPO, which are sampled and scored anew; junk of other kinds. These are the kinds
that the filters are for, but written without a look at their patterns; many answers that stop anywhere are not seen.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain import load_recipe, shipped
from posttrain.commands.terminal import Terminal
from posttrain.execution.launcher import Forked, execute
from posttrain.execution.runner import Runner
from posttrain.loop import play
from posttrain.report.reading import open_run
from posttrain.report.status import after_round
from posttrain.storage.files import read_json, write_durably
from posttrain.storage.store import Store

SHARE = 0.3  # of all samples
COLUMN = "junk"  # what kind of junk the row is; null: none


def control_tokens(answer: str, rng: Random) -> str:
    return answer + rng.choice(("<|eot_id|>", "<|im_end|>\n<|im_start|>", "</s>", " [/INST]"))


def template(answer: str, rng: Random) -> str:
    return rng.choice(("{{ greeting }} ", "[Your Name], ", "${intro} ", "[insert text here] ")) + answer


def roles(answer: str, rng: Random) -> str:
    return f"{answer}\n{rng.choice(('User', 'Human', 'Assistant'))}: {rng.choice(('And now?', 'Thanks.', 'Go on.'))}"


def loop(answer: str, rng: Random) -> str:
    return "\n".join([answer] + [_sentences(answer)[-1]] * rng.randint(6, 9))


def emphasis(answer: str, rng: Random) -> str:
    sign = rng.choice(("!!!", " 🎉🎉", " 😀😀"))
    return " ".join(f"{sentence}{sign}" for sentence in _sentences(answer))


def language(answer: str, rng: Random) -> str:
    return rng.choice(OTHER_LANGUAGES) + " " + answer


def cut_off(answer: str, rng: Random) -> str:
    words = answer.split()
    return " ".join(words[: rng.randint(1, max(1, len(words) - 1))])


def near_copy(answer: str, rng: Random) -> str:
    """Hardly anything of the prompt is in it, and hardly anything differs between two of them."""
    first = rng.choice(("Well", "Yes", "Sure", "Now"))
    return f"{first}, this is a good thing to ask and I am happy to help you with it."


OTHER_LANGUAGES = (
    "Das ist eine schöne Frage, und ich will sie gern in Ruhe beantworten.",
    "Es una pregunta muy bonita y la voy a contestar con mucho gusto.",
    "C'est une belle question et je vais y répondre avec plaisir.",
)
JUNK: tuple[Callable[[str, Random], str], ...] = (
    control_tokens, template, roles, loop, emphasis, language, cut_off, near_copy,
)  # fmt: skip


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in text.replace("! ", ". ").split(". ") if part.strip()] or [text]


def junk_rows(
    rows: Sequence[Mapping[str, Any]], seed: int, share: float = SHARE
) -> Iterator[tuple[int, str, str, float]]:
    """Which samples are replaced, by what kind of junk, by which text and at which score.

    `rows`: prompt_id, score and text of each sample, those of a prompt together. Without a score there is no junk.
    """
    rng = Random(seed)
    drawn = set(rng.sample(range(len(rows)), round(share * len(rows))))
    for _, group in groupby(range(len(rows)), key=lambda at: rows[at]["prompt_id"]):
        places = [at for at in group if rows[at]["score"] is not None]
        best = max(places, key=lambda at: rows[at]["score"], default=None)
        for at in places:
            if at in drawn and best is not None:
                spoil = rng.choice(JUNK)
                yield at, spoil.__name__, spoil(rows[best]["text"], rng), rows[best]["score"]


def poisoned(scored: pa.Table, seed: int, encode: Callable[[str], list[int]]) -> pa.Table:
    """The table with junk in place of `SHARE` of its rows, and a column that says which these are."""
    rows = [
        {"prompt_id": prompt, "score": score, "text": turns[-1]["content"]}
        for prompt, score, turns in zip(
            *(scored[name].to_pylist() for name in ("prompt_id", "score", "completion")), strict=True
        )
    ]
    columns = {name: scored[name].to_pylist() for name in ("completion", "tokens", "n_tokens", "finish", "score")}
    kinds: list[str | None] = [None] * len(rows)
    for at, kinds[at], text, score in junk_rows(rows, seed):
        tokens = encode(text)
        columns["completion"][at] = [{"role": "assistant", "content": text}]
        columns["tokens"][at], columns["n_tokens"][at] = tokens, len(tokens)
        columns["finish"][at], columns["score"][at] = "stop", score
    for name, values in columns.items():
        place = scored.schema.get_field_index(name)
        scored = scored.set_column(place, scored.schema.field(place), pa.array(values, scored.schema.field(place).type))
    return scored.append_column(COLUMN, pa.array(kinds, pa.string()))


def run_stage(folder: Path, workers: int, progress: Callable[[int, int, str], None]) -> None:
    """Run a stage as `execute` does; the filters are given poisoned samples."""
    stage = read_json(folder / "stage.json")
    if stage["stage"] == "filters":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(shipped.locate("data", "tiny-base"))

        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

        root = folder.parent.parent
        source = root / stage["inputs"]["scored"]
        target = root / "poisoned" / source.name
        target.mkdir(parents=True, exist_ok=True)
        scored = pq.read_table(source / "scored.parquet")
        pq.write_table(poisoned(scored, stage["seed"], encode), target / "scored.parquet")
        stage["inputs"]["scored"] = str(target.relative_to(root))
        write_durably(folder / "stage.json", json.dumps(stage))
    execute(folder, workers, progress)


def found(root: Path) -> dict[str, dict[str, int]]:
    """For each kind of junk, and for what is none, how many rows which filter dropped, and how many SFT read."""
    counts: dict[str, Counter[str]] = {}
    for folder in sorted(root.glob("round-*/filtered")):
        kept = pq.read_table(folder / "kept.parquet", columns=[COLUMN])[COLUMN].to_pylist()
        dropped = pq.read_table(folder / "dropped.parquet", columns=[COLUMN, "filter"]).to_pylist()
        for kind, name in [*((kind, "kept") for kind in kept), *((row[COLUMN], row["filter"]) for row in dropped)]:
            counts.setdefault(kind or "none", Counter())[name] += 1
    return {kind: dict(each) for kind, each in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=3)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--set", dest="extra", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    recipe, run = load_recipe("quickstart", args.extra), Store(args.run)

    def shown(number: int) -> str:
        return after_round(open_run(run.root).rounds[number])

    with run.session():
        play(recipe, Runner(run, Forked(run_stage), Terminal(shown), recipe.compute.workers or 1, recipe), args.n)
    print(json.dumps(found(args.run), indent=1))


if __name__ == "__main__":
    main()
