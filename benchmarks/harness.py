"""Benchmarks by our engine against lm-evaluation-harness's own `hf` model: the same answers, and how fast.

    python benchmarks/harness.py MODEL --gsm8k test.jsonl [--ifeval input_data.jsonl] [--equal 200] [--timed 24]

Float32 on both sides, the same task files, each side on all cores; seconds are wall time with loading, without the
first imports. Choices: questions after solved examples of GSM8K (two: about 300 tokens), four answers of several
tokens, one of them right. Answers: GSM8K without examples, its text as it stands, up to `--new` tokens, and IFEval's
prompts, scored by `reward/instructions.py` on both sides. The `hf` model is timed with the batch sizes 1, 8, 32 and
`auto` on `--timed` questions (its `auto` tries a batch as long as the context, so a context of `--context` is given to
both); what is equal is counted on `--equal` questions with its fastest, or the last of `--batches`. Where two texts
part, the plain model's two best logits are taken there: a near-tie is one within 1e-4.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from posttrain.config.benchmark import Benchmark
from posttrain.job import Job
from posttrain.stages import benchmark as stage
from posttrain.system import cores

BATCHES = ("1", "8", "32", "auto")
TIE = 1e-4
PAGE = Path(__file__).resolve().parent.parent / "docs" / "evaluation.md"
CHOICES = """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
ANSWERS = """
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:"], do_sample: false, max_gen_toks: NEW}
filter_list:
  - name: last-number
    filter:
      - {function: regex, regex_pattern: "(-?[0-9][0-9,]*)", group_select: -1}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: [",", "(?s).*#### "]}
"""


@dataclass
class Side:
    """What came of a task: figures by metric, what was answered to each question, and the wall seconds."""

    figures: dict[str, float]
    answers: list[Any]
    seconds: float


@dataclass
class Equal:
    """How far two sides agree. `largest`: difference of two log-likelihoods; `parted`: texts that differ, of which
    `ties` part at a near-tie."""

    task: str
    questions: int
    largest: float
    parted: int
    ties: int
    ours: dict[str, float]
    theirs: dict[str, float]


def task(folder: Path, name: str, body: str, rows: Sequence[Mapping[str, Any]], new: int) -> Path:
    data, file = folder / f"{name}-{len(rows)}.jsonl", folder / f"{name}-{len(rows)}.yaml"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
    file.write_text(f"task: {name}\n{source}{body.replace('NEW', str(new))}", "utf-8")
    return file


def checked_ifeval(folder: Path) -> str:
    """The page's task of IFEval by our checks, without its first lines, which say where the questions are. Its
    functions are written beside."""
    page = PAGE.read_text("utf-8").partition("### IFEval by our checks")[2]
    body, functions = (page.partition(f"```{kind}\n")[2].partition("```")[0] for kind in ("text", "python"))
    (folder / "ifeval_checked.py").write_text(functions, "utf-8")
    return body.partition("test_split: test\n")[2].replace("512", "NEW")


def as_choices(rows: Sequence[Mapping[str, str]], count: int, solved: int) -> Iterator[dict[str, Any]]:
    """Questions after some solved ones, whose four answers are sentences that differ by a number."""
    draw, shown = random.Random(0), rows[len(rows) - solved :]
    before = "".join(f"Question: {row['question']}\nAnswer: {_solved(row)}\n\n" for row in shown)
    for row in rows[:count]:
        right = int(row["answer"].rpartition("####")[2].replace(",", ""))
        others = draw.sample([n for n in {right + 1, right - 1, right + 10, 2 * right, right // 2} if n != right], 3)
        numbers = [right, *others]
        draw.shuffle(numbers)
        choices = [f"After all of that, the answer comes to {number} in total." for number in numbers]
        text = f"{before}Question: {row['question']}\nAnswer:"
        yield {"text": text, "choices": choices, "label": numbers.index(right)}


def _solved(row: Mapping[str, str]) -> str:
    return re.sub(r"<<.*?>>", "", row["answer"]).replace("####", "The answer is")


def ours(model: Path, file: Path, shard_tokens: int) -> Side:
    with tempfile.TemporaryDirectory() as folder:
        out, scratch = Path(folder) / "out", Path(folder) / "scratch"
        out.mkdir()
        scratch.mkdir()
        benchmark = Benchmark(task=str(file), chat=False)
        engine = {"use": "shared-prefix", "dtype": "float32", "shard_tokens": shard_tokens}
        config = {"benchmark": benchmark.model_dump(mode="json"), "engine": engine}
        started = time.perf_counter()
        found = stage.run(Job(config, {"policy": model}, out, scratch, 0, workers=cores()))
        seconds = time.perf_counter() - started
        samples = [json.loads(line) for line in (out / "samples.jsonl").read_text("utf-8").splitlines()]
    (figures,) = found["figures"].values()
    values = {name.partition(",")[0]: one["value"] for name, one in figures.items()}
    return Side(values, [row["resps"] for row in samples], seconds)


def theirs(model: Path, file: Path, batch: str) -> Side:
    from lm_eval import evaluator
    from lm_eval.models import huggingface
    from lm_eval.tasks import TaskManager

    load: Any = huggingface.HFLM  # its signature is hidden by a decorator
    started = time.perf_counter()
    own = load(pretrained=str(model), dtype="float32", device="cpu", batch_size=batch, max_batch_size=32)
    tasks: Any = TaskManager(include_defaults=False).load(str(file))
    found: Any = evaluator.evaluate(own, tasks, bootstrap_iters=0)
    seconds = time.perf_counter() - started
    (figures,), (samples,) = found["results"].values(), found["samples"].values()
    values = {key.partition(",")[0]: value for key, value in figures.items() if isinstance(value, float)}
    del own
    gc.collect()
    return Side(values, json.loads(json.dumps([row["resps"] for row in samples])), seconds)


def compare(name: str, model: Path, file: Path, mine: Side, other: Side) -> Equal:
    largest, parted, ties = 0.0, 0, 0
    plain = _Plain(model)
    rows = [json.loads(line) for line in file.with_suffix(".jsonl").read_text("utf-8").splitlines()]
    for row, one, its in zip(rows, mine.answers, other.answers, strict=True):
        for (first, *_), (second, *_) in zip(one, its, strict=True):
            if isinstance(first, str):
                parted += first != second
                ties += first != second and plain.gap(_asked(row), first, second) <= TIE
            else:
                largest = max(largest, abs(first[0] - second[0]))
    their = {key: other.figures[key] for key in mine.figures}
    return Equal(name, len(rows), largest, parted, ties, mine.figures, their)


def _asked(row: Mapping[str, Any]) -> str:
    return row["prompt"] if "prompt" in row else f"Question: {row['question']}\nAnswer:"


class _Plain:
    """The model by transformers alone, loaded when it is asked for the first time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, None

    @torch.inference_mode()
    def gap(self, question: str, first: str, second: str) -> float:
        """Between the two best logits where two answers part."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if self.model is None:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)
            self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        asked = self.tokenizer(question)["input_ids"]
        one, other = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (first, second))
        same = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)
        best = self.model(torch.tensor([[*asked, *one[:same]]])).logits[0, -1].topk(2).values
        return float(best[0] - best[1])


def with_context(model: Path, length: int, target: Path) -> Path:
    """A copy whose config says a context of so many tokens, and which has no settings for generation of its own: with
    `max_new_tokens` among them `hf` generates as many, whatever the task says."""
    shutil.copytree(model, target, ignore=shutil.ignore_patterns("generation_config.json"))
    config = json.loads((target / "config.json").read_text("utf-8"))
    config["max_position_embeddings"] = min(length, config["max_position_embeddings"])
    (target / "config.json").write_text(json.dumps(config), "utf-8")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--gsm8k", type=Path, required=True)
    parser.add_argument("--ifeval", type=Path)
    parser.add_argument("--equal", type=int, default=200)
    parser.add_argument("--timed", type=int, default=24)
    parser.add_argument("--solved", type=int, default=2)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--sets", nargs="+", choices=("choices", "answers", "ifeval"), help="Only these.")
    parser.add_argument("--batches", nargs="+", default=BATCHES)
    parser.add_argument("--shard-tokens", type=int, default=16384)
    parser.add_argument(
        "--only", choices=("timed", "equal"), help="One half of it: the other need not have the machine alone."
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(cores())
    gsm8k = [json.loads(line) for line in options.gsm8k.read_text("utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = with_context(options.model, options.context, folder / "model")
        sets = {
            "choices": (CHOICES, list(as_choices(gsm8k, options.equal, options.solved))),
            "answers": (ANSWERS, gsm8k[: options.equal]),
        }
        if options.ifeval:
            rows = [json.loads(line) for line in options.ifeval.read_text("utf-8").splitlines()]
            sets["ifeval"] = (checked_ifeval(folder), rows[: options.equal])
        sets = {name: one for name, one in sets.items() if not options.sets or name in options.sets}
        first = task(folder, "first", ANSWERS, gsm8k[:1], 1)  # the first time both import much
        ours(model, first, options.shard_tokens)
        theirs(model, first, "1")
        found: dict[str, Any] = {"cores": cores(), "seconds": {}, "equal": []}
        best = options.batches[-1]
        for name, (body, rows) in sets.items():
            if name != "ifeval" and options.only != "equal":
                few = task(folder, name, body, rows[: options.timed], options.new)
                by_side = {"ours": ours(model, few, options.shard_tokens).seconds}
                for batch in options.batches:  # printed one by one: `auto` may take all of the memory
                    print(json.dumps({name: by_side}), flush=True)
                    by_side[f"hf, {batch}"] = theirs(model, few, batch).seconds
                found["seconds"][name] = by_side
                best = min(options.batches, key=lambda batch: by_side[f"hf, {batch}"])
                print(json.dumps({name: by_side}), flush=True)
            if options.only != "timed":
                file = task(folder, name, body, rows, options.new)
                equal = compare(name, model, file, ours(model, file, options.shard_tokens), theirs(model, file, best))
                found["equal"].append(asdict(equal))
                print(json.dumps(found["equal"][-1]), flush=True)
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), "utf-8")


def table(found: Mapping[str, Any]) -> str:
    """Two tables in Markdown, of what was measured."""
    lines = list[str]()
    if found["seconds"]:
        batches = list(next(iter(found["seconds"].values())))
        lines += [f"| seconds | {' | '.join(batches)} | best of hf / ours |", "| --- |" + " --- |" * (len(batches) + 1)]
    for name, by_side in found["seconds"].items():
        ratio = min(value for side, value in by_side.items() if side != "ours") / by_side["ours"]
        lines.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in by_side.values())} | {ratio:.2f} |")
    if found["equal"]:
        lines += [
            "",
            "| task | questions | log-likelihoods within | texts that differ | of these near-ties | figures |",
        ]
        lines.append("| --- | --- | --- | --- | --- | --- |")
    for one in found["equal"]:
        figures = ", ".join(f"{name} {one['ours'][name]:.4f} / {value:.4f}" for name, value in one["theirs"].items())
        counts = f"{one['largest']:.1e} | {one['parted']} | {one['ties']}"
        lines.append(f"| {one['task']} | {one['questions']} | {counts} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
