"""Gives the inspection of model folders a good folder with one file changed at random, and counts what comes back.

    python benchmarks/fuzz_models.py --inputs 2000

Each folder is looked at as the first stage of a run does, in a child of this process, with limits. What it may do is
take the folder, or refuse it by a rule. Anything else is printed with its input, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile

BASE = Path(__file__).parents[1] / "data" / "tiny-base"
ASKED = [[{"role": "user", "content": "Mia has 7 apples and buys 12 more. How many has she?"}]]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 7.5, 10**5, 10**9, 10**30, 1e308, float("nan"), "", "x", "4", "float32", "\ud800",
    "a" * 10_000, [], {}, [1], ["x"], [None], {"a": 1}, [[[[]]]], list(range(200)), {"content": "x"},
    "flash_attention_2", {"quant_method": "gptq", "bits": 4},
    "../../x", "save", "<|end|>", "BertTokenizer", "LlamaModel", "gpt2", "mamba",
]  # fmt: skip
BYTES = [b"\x00", b"\xff", b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"NaN", b"-1", b"9" * 400, b"[" * 3000]
SNIPPETS = [
    "{{ 1 / 0 }}", "{{ x.y }}", "{{ tools | length }}", "{% for i in range(99999) %}", "{% endfor %}", "{% if 1 %}",
    "{% endif %}", "{{ 'a' * 10 ** 10 }}", "{{ '%9999999999d' % 3 }}", "{% include 'x' %}", "{{ messages }}", "{{",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{% set m = messages[0] + 1 %}", "{{ raise_exception('no') }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ eos_token * 10 ** 8 }}",
    "{{ ''.__class__ }}", "{% generation %}", "{% set ns = namespace(x='a') %}", "<|end|>", "{{ messages | tojson }}",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A file of the folder, and the seed of what is done to it."""

    name: str
    seed: int


def _json(random_: random.Random, good: bytes) -> bytes:
    """One to three values of a JSON text replaced, taken out or doubled; or its bytes changed."""
    if random_.random() < 0.2:
        return _bytes(random_, good)
    said = json.loads(good)
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        _change(random_, said)
    return json.dumps(said).encode("utf-8", "surrogatepass")


def _change(random_: random.Random, said: Any) -> None:
    """Walk down at random, mostly not far, and change what is there."""
    while True:
        keys = list(said) if isinstance(said, dict) else list(range(len(said)))
        if not keys:
            return
        key = random_.choice(keys)
        if isinstance(said[key], dict | list) and said[key] and random_.random() < 0.7:
            said = said[key]
            continue
        kind = random_.randrange(5)
        if kind == 0:
            del said[key]
        elif kind == 1:
            other = copy.deepcopy(said[random_.choice(keys)])
            said[key] = other
        else:
            said[key] = random_.choice(VALUES)
        return


def _bytes(random_: random.Random, good: bytes) -> bytes:
    made = bytearray(good)
    for _ in range(random_.choice((1, 1, 2, 4))):
        at = random_.randrange(len(made) + 1)
        kind = random_.randrange(4)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << random_.randrange(8)
        elif kind == 1:
            made[at:at] = random_.choice(BYTES)
        elif kind == 2:
            del made[at : at + random_.randrange(40)]
        else:
            del made[at:]
    return bytes(made)


def _template(random_: random.Random, good: bytes) -> bytes:
    if random_.random() < 0.2:
        return _bytes(random_, good)
    text = good.decode()
    for _ in range(random_.choice((1, 1, 2))):
        between = [0, *(at + 2 for at in range(len(text)) if text[at : at + 2] in ("%}", "}}"))]
        at = random_.choice(between) if random_.random() < 0.8 else random_.randrange(len(text))
        to = at + random_.choice((0, 0, 0, 5, 30))
        text = text[:at] + random_.choice(SNIPPETS) + text[to:]
    return text.encode()


def _safetensors(random_: random.Random, good: bytes) -> bytes:
    """Mostly the header; sometimes its length, the end of the file, or a weight."""
    length = int.from_bytes(good[:8], "little")
    header, rest = good[8 : 8 + length], good[8 + length :]
    kind = random_.randrange(6)
    if kind == 0:
        return (
            random_.choice((0, 1, length - 1, length + 1, 10**6, 1 << 40, (1 << 64) - 1)).to_bytes(8, "little")
            + good[8:]
        )
    if kind == 1:
        return good[: random_.randrange(len(good))]
    if kind == 2:
        at = random_.randrange(0, len(rest) - 4, 4)
        rest = rest[:at] + random_.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\0\0")) + rest[at + 4 :]
        return good[: 8 + length] + rest
    made = _json(random_, header)
    return len(made).to_bytes(8, "little") + made + rest


FILES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "config.json": _json,
    "generation_config.json": _json,
    "tokenizer_config.json": _json,
    "tokenizer.json": _json,
    "chat_template.jinja": _template,
    "model.safetensors": _safetensors,
}


def cases(inputs: int, seed: int) -> list[Case]:
    """As many for each file."""
    names = list(FILES)
    return [Case(names[at % len(names)], seed * 1_000_000 + at) for at in range(inputs)]


def read(case: Case) -> None:
    """What the command and then the first stage do with a folder. Raises PosttrainError."""
    from posttrain.models.folder import check_files
    from posttrain.models.inspection import inspect

    with tempfile.TemporaryDirectory(prefix="fuzz-models-") as made:
        folder = Path(made)
        for path in BASE.iterdir():
            if path.name == case.name:
                change = FILES[case.name](random.Random(case.seed), path.read_bytes())
                (folder / case.name).write_bytes(change)
            else:
                (folder / path.name).symlink_to(path)
        check_files(folder, str(folder))
        inspect(folder, ASKED)


def run(inputs: int, seed: int) -> bool:
    """Prints a table for each file. Whether nothing was wrong."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import posttrain.execution.preload  # noqa: F401 - what the stages' server has, so that a child imports nothing

    right = True
    every = cases(inputs, seed)
    outcomes = hostile.run(every, read)
    for name in FILES:
        some = [outcome for outcome in outcomes if every[outcome.case].name == name]
        right &= hostile.table(name, some, lambda at: str(every[at]))
    print(f"{len(outcomes):,} folders: {_counted([outcome.kind for outcome in outcomes])}")
    return right


def _counted(kinds: Sequence[str]) -> str:
    counts = Counter(
        "read" if kind == "read" else kind if kind in hostile.WRONG else "refused by a rule" for kind in kinds
    )
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    sys.exit(not run(asked.inputs, asked.seed))


if __name__ == "__main__":
    main()
