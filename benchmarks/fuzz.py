"""Gives the readers of recipes and of prompt files inputs that are broken in many ways, and counts what comes back.

    python benchmarks/fuzz.py --inputs 100000

Each input is a good file with random changes: bytes flipped, cut, doubled, or replaced by what breaks parsers. What a
reader may do is return, or raise an error of ours. Anything else is printed with its input, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from posttrain.errors import PosttrainError
from posttrain.loaders import read_preferences, read_prompts
from posttrain.recipe import PromptSet, load

RECIPE = b"""\
name: fuzz
model: {path: tiny-base, dtype: bfloat16, lora: {r: 8}}
seed: 3
prompts:
  train: [{path: word-problems.train.jsonl, rows: ":100"}, {dataset_name: a/b, split: train, columns: {prompt: q}}]
  dev: {path: ./dev.jsonl}
  heldout: {path: ../heldout.csv}
  system: |
    Be brief.
reward:
  - {use: word-problems.py, weight: 0.5}
  - {use: reward-model, weight: 1e-1}
preferences: {prompts: 8, k: 2, keep: [better]}
reward_model: {learning_rate: 1e-4, max_steps: 3}
samples: &s {k: 4, max_new_tokens: 16}
filters: [{use: format}, {use: best-of-k}]
sft: {learning_rate: 2e-5, variants: [{seed: 1}, {seed: 2}]}
dpo: {beta: 0.1, pairs_from: [preferences, samples]}
promote: better
"""
PROMPTS = b"""\
{"prompt": "What is 3 + 4?", "answer": "7", "n": 1}
{"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "5?"}], "answer": "5", "n": 2.5}
{"prompt": "caf\\u00e9 \xc3\xa9 \xf0\x9f\x98\x80", "answer": null, "n": -1}
{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "answer": [1, {"x": 2}], "n": 0}
"""
TABLE = b"""\
prompt,answer
"What is 3 + 4?",7
"a ""quoted"" one
over two lines",
plain,8
"""
PAIRS = b"""\
{"prompt": "3 + 4?", "chosen": "7", "rejected": "8", "level": "better"}
{"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "rejected": \
[{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]}
"""
BREAKS = [
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b"\t", b"  ", b"{", b"}", b"[", b"]", b'"', b"'", b":", b",", b"#",
    b"&a ", b"*a", b"*s", b"<<: *s", b"!!python/object/apply:os.system [true]", b"!!binary x", b"!x ", b"? ", b"- ",
    b"---\n", b"...\n", b"%YAML 9.9\n", b"null", b"~", b"true", b"NaN", b"-.inf", b"1e999", b"-1", b"9" * 400,
    b"0x1F", b"1_000", b"2024-01-01", b"\\ud800", b"\\u0000", b"\xe2\x80\xa8", b"../../etc/passwd", b"${HOME}",
    b"[" * 3000, b"{a: " * 500, b'{"a":' * 2000, b"extends: ", b"__class__", b"k: 4, k: 5",
]  # fmt: skip


def broken(good: bytes, random_: random.Random) -> bytes:
    """The input with one to six random changes."""
    made = bytearray(good)
    for _ in range(random_.choice((1, 1, 1, 2, 6))):
        at, to = sorted(random_.randint(0, len(made)) for _ in range(2))
        to = min(to, at + random_.randint(0, 40))
        kind = random_.randrange(6)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << random_.randrange(8)
        elif kind == 1:
            del made[at:to]
        elif kind == 2:
            made[at:at] = made[at:to]
        elif kind == 3:
            made[at:to] = random_.choice(BREAKS)
        elif kind == 4:
            made[at:at] = random_.choice(BREAKS)
        else:
            lines = bytes(made).splitlines(keepends=True)
            random_.shuffle(lines)
            made = bytearray(b"".join(lines))
    return bytes(made)


def _prompts(path: Path) -> None:
    read_prompts(PromptSet(path=str(path)))


def _pairs(path: Path) -> None:
    read_preferences(PromptSet(path=str(path)))


READERS: Sequence[tuple[str, bytes, Callable[[Path], object]]] = (
    ("recipe.yaml", RECIPE, lambda path: load(str(path), files=False)),
    ("prompts.jsonl", PROMPTS, _prompts),
    ("prompts.csv", TABLE, _prompts),
    ("pairs.jsonl", PAIRS, _pairs),
)


def fuzz(name: str, good: bytes, read: Callable[[Path], object], inputs: int, seed: int, folder: Path) -> Counter[str]:
    """How often each kind of outcome came; what is no error of ours is told on stderr, and counted as `traceback`."""
    random_, outcomes, path = random.Random(f"{name} {seed}"), Counter[str](), folder / name
    for _ in range(inputs):
        given = broken(good, random_)
        path.write_bytes(given)
        try:
            read(path)
            outcomes["read"] += 1
        except PosttrainError as error:
            outcomes[type(error).__name__] += 1
        except BaseException:
            outcomes["traceback"] += 1
            print(f"{name}: {given!r}\n{traceback.format_exc()}", file=sys.stderr)
            if outcomes["traceback"] >= 5:
                break
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="for recipes; and as many for prompts and pairs")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    failed = False
    for name, good, read in READERS:
        count = given.inputs if name == "recipe.yaml" else -(-given.inputs // 3)
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            outcomes = fuzz(name, good, read, count, given.seed, Path(folder))
        failed |= outcomes["traceback"] > 0
        print(f"{name}: {outcomes.total():,} inputs in {time.monotonic() - began:.0f} s: {dict(outcomes)}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
