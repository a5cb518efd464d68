"""Gives the readers of recipes and of data files inputs that are broken in many ways, and counts what comes back.

    python benchmarks/fuzz.py --inputs 20000

Each input is a good file with random changes: bytes flipped, cut, doubled, or replaced by what breaks parsers; of
Parquet, a table with odd columns too. What a reader may do is return, or raise an error of ours, which is counted by
its rule. An error of ours without one counts as `other`; anything else is printed with its input. The exit code is 1
where there is either.
"""

from __future__ import annotations

import argparse
import datetime as dt
import decimal
import io
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain import load_recipe
from posttrain.config import PromptSet
from posttrain.data.load import read_preferences, read_prompts
from posttrain.data.row_files import open_rows
from posttrain.errors import PosttrainError

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
ROWS = b"""\
{"prompt": "p", "completion": "a", "n": 1, "x": {"y": [1, 2]}}
{"prompt": "q", "completion": "caf\\u00e9", "n": 2, "x": null}
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
    b"0x" + b"f" * 5000, b"0o" + b"7" * 5000, b"1_0" * 2000, b"1" + b":59" * 2000, b"%YAML 1.1\n---\n", b".inf",
    b"9223372036854775808", b"b0: &b0 [1]\n" + b"".join(b"b%d: &b%d [%s]\n" % (i, i, b"*b%d, " % (i - 1) * 9)
    for i in range(1, 20)), b"t0: &t0 " + b"x" * 1000 + b"\n" + b"".join(b"t%d: &t%d [%s]\n" % (i, i,
    b"*t%d, " % (i - 1) * 9) for i in range(1, 9)), b"&l [*l]", b"- " * 100, b"extends: quickstart\n",
    b"extends: /dev/zero\n",
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


def odd_table(random_: random.Random) -> pa.Table:
    """Prompts beside one to three columns of kinds that prompts seldom have."""
    when = dt.datetime(2024, 2, 29, 12, 30, 15, 250_000)
    odd = [
        pa.array([when, None], pa.timestamp("ns", "Europe/Paris")),
        pa.array([2**60, 0], pa.int64()).cast(pa.timestamp("ms")),
        pa.array([when.date(), None]),
        pa.array([dt.timedelta(days=1), None], pa.duration("ns")),
        pa.array([decimal.Decimal("1.5"), None], pa.decimal128(9, 2)),
        pa.array([b"\xff", b""]),
        pa.array([b"\xff", b"a"]).view(pa.string()),
        pa.array([[{"a": when, "b": [1.5, float("nan")]}], []]),
        pa.array([[("k", 2**63)], []], pa.map_(pa.string(), pa.uint64())),
        pa.array([float("inf"), float("nan")]),
        pa.array([None, None]),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array(["x" * 200_000, "y"]),
        pa.array([[0] * 50_000, []], pa.list_(pa.int8())),
        pa.array(["a", "b"], pa.string_view()),
        pa.array([{}, {}], pa.struct([])) if random_.random() < 0.1 else pa.array([1, 2]),
    ]
    columns = random_.sample(odd, random_.randint(1, 3))
    names = ["prompt", *random_.sample(["x", "y", "prompts", "completion", "messages"], len(columns))]
    return pa.table([pa.array(["p", "q"]), *columns], names=names)


def parquet(random_: random.Random) -> bytes:
    stream = io.BytesIO()
    try:
        pq.write_table(odd_table(random_), stream, compression=random_.choice(("none", "zstd", "snappy")))
    except pa.ArrowException:  # what cannot be written cannot be given
        return parquet(random_)
    return stream.getvalue()


def _filtered(path: Path) -> None:
    for part in open_rows(path).parts():
        part.rows.to_pylist() if path.suffix != ".parquet" else part.rows.validate()


def _prompts(path: Path) -> None:
    read_prompts(PromptSet(path=str(path)))


def _pairs(path: Path) -> None:
    read_preferences(PromptSet(path=str(path)))


READERS: Sequence[tuple[str, bytes, Callable[[Path], object]]] = (
    ("recipe.yaml", RECIPE, lambda path: load_recipe(str(path), files=False)),
    ("prompts.jsonl", PROMPTS, _prompts),
    ("prompts.csv", TABLE, _prompts),
    ("prompts.parquet", b"", _prompts),
    ("rows.jsonl", ROWS, _filtered),
    ("rows.csv", TABLE.replace(b"prompt", b"completion"), _filtered),
    ("rows.parquet", b"", _filtered),
    ("pairs.jsonl", PAIRS, _pairs),
)


def fuzz(name: str, good: bytes, read: Callable[[Path], object], inputs: int, seed: int, folder: Path) -> Counter[str]:
    """How often each kind of outcome came; what is no error of ours is told on stderr, and counted as `traceback`."""
    random_, outcomes, path = random.Random(f"{name} {seed}"), Counter[str](), folder / name
    for _ in range(inputs):
        given = good or parquet(random_)
        if good or random_.random() < 0.5:  # half of the tables stay whole
            given = broken(given, random_)
        path.write_bytes(given)
        try:
            read(path)
            outcomes["read"] += 1
        except PosttrainError as error:
            outcomes[error.rule or "other"] += 1
        except BaseException:
            outcomes["traceback"] += 1
            print(f"{name}: {given!r}\n{traceback.format_exc()}", file=sys.stderr)
            if outcomes["traceback"] >= 5:
                break
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--inputs", type=int, default=100_000, help="for recipes; a third as many for each kind of data"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    failed = False
    for name, good, read in READERS:
        count = given.inputs if name == "recipe.yaml" else -(-given.inputs // 3)
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            outcomes = fuzz(name, good, read, count, given.seed, Path(folder))
        failed |= outcomes["traceback"] + outcomes["other"] > 0
        print(f"{name}: {outcomes.total():,} inputs in {time.monotonic() - began:.0f} s", flush=True)
        for outcome, times in outcomes.most_common():
            print(f"  {times:>7,}  {outcome}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
