"""Benchmarks by lm-evaluation-harness (`pip install 'posttrain[eval]'`), with our engines as its model.

Only for a process of its own: a task file names functions that are imported, and random generators are seeded globally.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.benchmark import Benchmark
from posttrain.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from posttrain.evaluation.harness_model import EngineModel

FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_SEED = 1234  # lm-evaluation-harness's own, for its few-shot examples
_Z = 1.96


def task_file(benchmark: Benchmark) -> Path | None:
    """The task's YAML; None for a group of tasks, or one that is written in Python.

    Raises:
        InputError: there is no such task.
    """
    if "/" in benchmark.task:
        return Path(benchmark.task)
    found = _by_its_name(benchmark.task)
    if found:
        return found
    index = _index()  # reads thousands of files
    entry = index.get(benchmark.task)
    if entry is None:
        raise InputError(
            f"lm-evaluation-harness has no task {benchmark.task!r}{did_you_mean(benchmark.task, index)}",
            hint="name one of its tasks (`lm-eval ls tasks`), or a task file, with a slash",
            rule="benchmark-unknown",
        )
    return Path(entry.yaml_path) if entry.yaml_path and entry.kind.name == "TASK" else None


def load(benchmark: Benchmark, scratch: Path) -> dict[str, Any]:
    """The tasks of a benchmark by name, with their questions, which are read here. `scratch`: a folder for a file.

    Raises:
        InputError: there is no such task, its questions cannot be read, what it imports is not installed, or nothing
            says which answer is right.
    """
    from lm_eval.tasks import TaskManager

    tasks: Any
    source, spec = task_file(benchmark), benchmark.task
    if source:
        spec = str(_changed(benchmark, source, scratch))
    elif benchmark.file or benchmark.fewshot is not None:
        raise InputError(
            f"{benchmark.task} is a group of tasks: `file` and `fewshot` are for a single one",
            hint="name its tasks one by one",
            rule="benchmark-group",
        )
    try:
        tasks = TaskManager(include_defaults=source is None).load(spec)
    except Exception as error:  # of the file, of what it imports, or of the set that it names
        raise _unreadable(benchmark, error) from error
    for name, task in tasks["tasks"].items():
        _check(benchmark, name, task)
    return tasks


def _by_its_name(name: str) -> Path | None:
    """The file of a task that is called as the task is, as most are: the index reads thousands."""
    import lm_eval.tasks

    for path in Path(lm_eval.tasks.__file__).parent.rglob(f"{name}.yaml"):
        if _read(path).get("task") == name:
            return path
    return None


def _index() -> Mapping[str, Any]:
    from lm_eval.tasks import TaskManager

    return TaskManager().task_index


def _changed(benchmark: Benchmark, source: Path, scratch: Path) -> Path:
    """The task file with the benchmark's own changes, as a file that includes it."""
    import yaml

    changes: dict[str, Any] = {"include": str(source.absolute()), "task": benchmark.name}
    if benchmark.file:
        changes |= _questions(benchmark, source)
    if benchmark.fewshot is not None:
        changes["num_fewshot"] = benchmark.fewshot
    target = scratch / f"{benchmark.name}.yaml"
    target.write_text(yaml.safe_dump(changes), "utf-8")
    return target


def _questions(benchmark: Benchmark, source: Path) -> dict[str, Any]:
    """The keys of a task that read its questions from the given files."""
    task = _read(source)
    evaluated = task.get("test_split") or task.get("validation_split") or "test"
    given = benchmark.file if isinstance(benchmark.file, dict) else {evaluated: benchmark.file}
    shown = task.get("num_fewshot") if benchmark.fewshot is None else benchmark.fewshot
    splits = ("fewshot_split", "training_split", "validation_split")
    examples = next((task[name] for name in splits if task.get(name)), evaluated)
    own = (task.get("fewshot_config") or {}).get("samples")  # examples that the task brings
    if shown and not own and examples not in given:
        raise InputError(
            f"{benchmark.task} shows {shown} examples before a question, of its split {examples!r}, and there is no "
            "file for that",
            hint=f"file: {{{evaluated}: FILE, {examples}: FILE}}, or fewshot: 0",
            rule="benchmark-file",
        )
    files = {split: str(Path(file or "").absolute()) for split, file in given.items()}
    kinds = {FORMATS.get(Path(file).suffix) for file in files.values()}
    if len(kinds) != 1 or None in kinds:
        raise InputError(
            f"the questions of {benchmark.task} are in files of other kinds than {', '.join(FORMATS)}, or of several",
            hint="give files of one kind",
            rule="benchmark-file",
        )
    without: dict[str, Any] = {name: None for name in (*splits, "test_split") if task.get(name) not in given}
    if shown and not own and examples == task.get("test_split"):  # so named, a question is never among its own examples
        without["fewshot_split"] = examples
    return {"dataset_path": kinds.pop(), "dataset_name": None, "dataset_kwargs": {"data_files": files}, **without}


def _read(source: Path) -> dict[str, Any]:
    """A task file with what it includes; the names of functions as words."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(source, resolve_func=False)


def _unreadable(benchmark: Benchmark, error: Exception) -> InputError:
    lacking = lacks(benchmark, error)
    if lacking:
        return lacking
    if isinstance(error, StopIteration):  # of `datasets`, which names nothing
        return InputError(
            f"a file of {benchmark.task} has no question in it",
            hint="give one with a question a line",
            rule="benchmark-unreadable",
        )
    said = _first_line(error)
    offline = ("Offline", "Connection", "DatasetNotFound", "LocalEntryNotFound", "Lookup")
    if type(error).__name__.startswith(offline):
        return InputError(
            f"{benchmark.task} reads what is not on this machine, and the network does not give it: {said}",
            hint=f"give its questions: {{task: {benchmark.task}, file: ./questions.jsonl}}",
            rule="benchmark-network",
        )
    return InputError(
        f"the task {benchmark.task} cannot be read: {said}",
        hint="`lm-eval validate --tasks FILE` checks a task file",
        rule="benchmark-unreadable",
    )


def lacks(benchmark: Benchmark, error: Exception) -> InputError | None:
    """The error for a package, or data of NLTK's, that a task imports or reads and that is not on this machine; None
    for another one."""
    data = re.search(r"nltk\.download\('(\w+)'\)", str(error)) if isinstance(error, LookupError) else None
    if data:
        said, hint = f"NLTK's {data[1]}", f"python -m nltk.downloader {data[1]}"
    elif isinstance(error, ModuleNotFoundError) and error.name:
        said = f"the package {error.name}"
        extra = _extra(benchmark, error.name)
        hint = f"pip install 'lm_eval[{extra}]'" if extra else "install what has it"
    else:
        return None
    if benchmark.task == "ifeval":
        hint += "; or take ifeval-checked of docs/evaluation.md, which needs neither packages nor data"
    return InputError(f"{benchmark.task} needs {said}, which is not on this machine", hint=hint, rule="benchmark-needs")


def _extra(benchmark: Benchmark, package: str) -> str | None:
    """The extra of lm-evaluation-harness that brings a package: the one called as the task is, if there are several."""
    wanted = package.partition(".")[0].replace("_", "-").lower()
    found = []
    for line in metadata.requires("lm_eval") or []:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"""extra == ["']([\w-]+)["']""", line)
        if name and extra and extra[1] != "dev" and name[0].replace("_", "-").lower() == wanted:
            found.append(extra[1])
    return benchmark.task if benchmark.task in found else next(iter(found), None)


def _first_line(error: Exception) -> str:
    """With a word in it."""
    lines = [line.strip() for line in str(error).splitlines() if re.search(r"\w", line)]
    return (lines or [type(error).__name__])[0][:300]


def _check(benchmark: Benchmark, name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False) or getattr(task.config, "unsafe_code", False):
        raise InputError(
            f"{name} runs code that the model has written, and there is no sandbox for that",
            hint="leave it out",
            rule="benchmark-runs-code",
        )
    if getattr(task, "MULTIMODAL", False):
        raise InputError(f"{name} shows images or sounds", hint="leave it out", rule="benchmark-kind")
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    for number, doc in enumerate(itertools.islice(task.eval_docs, benchmark.limit), 1):
        if not _says_what_is_right(task, doc):
            raise InputError(
                f"{name} does not say which answer is right to question {number}",
                hint="its `doc_to_target` names the right choice, or gives its place, from 0 on",
                rule="benchmark-no-labels",
            )


def _says_what_is_right(task: Any, doc: Any) -> bool:
    """Whether the target of a question is among its choices, or their places: lm-evaluation-harness counts any other
    as wrong, whatever is answered."""
    choices, target = task.doc_to_choice(doc), (task.doc_to_text if task.multiple_input else task.doc_to_target)(doc)
    places = range(len(choices))
    given = target if isinstance(target, list) else [target]
    return bool(given) and all(one in places if isinstance(one, int) else one in choices for one in given)


def evaluate(tasks: Mapping[str, Any], benchmark: Benchmark, model: EngineModel) -> dict[str, Any]:
    """The figures of each task by name, then by metric: value, standard error `stderr`, 95 % interval `ci95`, number of
    questions `n`; and how often what was asked. What came of each question is in `samples`.

    Raises:
        harness_model.DoesNotFitError: a question is longer than the model's context.
    """
    import numpy as np
    import torch
    from lm_eval import evaluator

    random.seed(0)
    np.random.seed(_SEED)
    torch.manual_seed(_SEED)
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(_SEED)
    chat = _put_by_template(benchmark, tasks, model)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    found: Any = evaluator.evaluate(
        model,
        tasks,  # pyright: ignore[reportArgumentType] # what TaskManager.load gives
        limit=benchmark.limit,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        bootstrap_iters=1000,
    )
    counts = {name: each["effective"] for name, each in found["n-samples"].items()}
    figures = {name: dict(_figures(values, counts.get(name))) for name, values in found["results"].items() if values}
    samples = found["samples"]
    for name, rows in samples.items():
        for row in rows:
            row["question"] = _text(tasks["tasks"][name], row["doc"])
    return {"figures": figures, "chat": chat, "samples": samples}


def _put_by_template(benchmark: Benchmark, tasks: Mapping[str, Any], model: EngineModel) -> bool:
    if benchmark.chat is not None:
        return benchmark.chat
    generated = all(task.OUTPUT_TYPE == "generate_until" for task in tasks["tasks"].values())
    return generated and model.tokenizer.chat_template is not None


def _figures(values: Mapping[str, Any], count: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """From `acc,none` and `acc_stderr,none`."""
    for key, value in values.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        found = values.get(f"{metric}_stderr,{chosen}")
        error = float(found) if isinstance(found, int | float) and math.isfinite(found) else None
        figure = {
            "value": float(value),
            "stderr": error,
            "ci95": None if error is None else [value - _Z * error, value + _Z * error],
            "n": count,
        }
        yield metric if chosen == "none" else f"{metric}, {chosen}", figure


def _text(task: Any, doc: Any) -> str:
    """A question without examples or template, with its choices if it has any."""
    choices = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else []
    asked = task.doc_to_text(doc)
    said = [asked] if isinstance(asked, str) else []
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        said.append(str(task.doc_to_target(doc)))
    return "\n".join([*said, *map(str, choices)])


def questions(samples: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each question of each task, once: its text, and its score by the task's first metric that is a number."""
    for task, rows in samples.items():
        told = set[int]()
        for row in rows:
            if row["doc_id"] in told:  # a further filter of the answers
                continue
            told.add(row["doc_id"])
            values = [row[metric] for metric in row["metrics"]]
            score = next((float(value) for value in values if isinstance(value, int | float)), None)
            yield {"task": task, "text": row["question"], "score": score}


def as_lines(samples: Mapping[str, Any]) -> Iterator[str]:
    """What came of each question, a line of JSON each."""
    for task, rows in samples.items():
        for row in rows:
            yield json.dumps({"task": task, **row}, default=str, ensure_ascii=False)
