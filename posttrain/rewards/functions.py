"""A reward from `reward/NAME.py` or a file of the user's: plain functions with TRL's reward signature.

    def correct(prompts, completions, answer, **columns) -> list[float | None]: ...

`prompts` and `completions` are lists of message lists; each column of the prompt set is a list of the
same length; None means no score for this row. The file is one module by itself: what it imports must
be installed, since only the file's own content decides whether a finished stage is run again. It runs in a process
of its own (see `client`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from posttrain.config import RewardEntry
from posttrain.data.messages import Prompt
from posttrain.errors import PosttrainError, RewardError, did_you_mean
from posttrain.rewards import client, faults, golden_cases
from posttrain.rewards.protocol import DEFAULT, Columns, Conversations, Runtime
from posttrain.rewards.source import found, parameters


@dataclass(frozen=True)
class FileFunction:
    """A function in a file. Picklable: each process that asks starts one that imports the file.

    `needs` are the columns the function cannot be called without; `takes` all it takes, None for any.
    """

    reads_columns: ClassVar[bool] = True
    arguments: ClassVar[tuple[str, ...]]  # what it is given beside columns: the prompts, then answers
    probes: ClassVar[tuple[tuple[str, ...], ...]]  # made-up answers to a prompt, one for each argument of answers

    name: str
    file: str
    function: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] | None = None
    sha256: str = ""
    seconds: float | None = None  # that one call may take

    def ask(self, given: Sequence[Conversations], columns: Columns) -> list[float | None]:
        """The function's answer: one number, or None, for each row of `given`, which are its `arguments`.

        Raises:
            RewardError: it raised, ended or crashed its process, or returned a wrong length, type or NaN.
            StageError: it did not return in time, and was killed with what it had started.
            StageCrashedError: its process was killed.
        """
        taken = {name: list(values) for name, values in columns.items() if self.takes is None or name in self.takes}
        messages = {name: [list(row) for row in rows] for name, rows in zip(self.arguments, given, strict=True)}
        rows = len(messages["prompts"])
        try:
            return self._call({**messages, **taken}, rows, self.seconds)
        except client.Raised as error:
            raise faults.raised(self.file, self.function, error, self.arguments) from None
        except client.Wrong as error:
            raise faults.wrong(self.file, self.function, error, rows) from None
        except client.Ended as error:
            raise faults.ended(self.file, self.function, error) from None
        except client.Overdue as late:
            raise self._overdue(late, messages, taken) from None

    def _call(self, given: Mapping[str, list[Any]], rows: int, seconds: float | None) -> list[float | None]:
        return client.process(self.file, self.sha256).call(self.function, given, rows, seconds)

    @property
    def identity(self) -> str:
        """SHA-256 of the file and of which function is meant."""
        return hashlib.sha256(f"{self.sha256} {self.function}".encode()).hexdigest()

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raises RewardError when the prompt set lacks a column that the function cannot do without."""
        for name in self.needs:
            if name not in columns:
                raise RewardError(
                    f"{self.function}() needs the column {name!r}{did_you_mean(name, columns)}",
                    file=self.file,
                    hint=f"the prompts have {', '.join(columns) or 'no column beside prompt'}; "
                    "`columns:` in the recipe renames, and a default in the function does without",
                    rule="reward-column",
                )

    def probe(self, prompts: Sequence[Prompt]) -> None:
        """Calls the function once on a few prompts and made-up answers, so that it fails before any training.

        Raises RewardError.
        """
        few = list(prompts[:4])
        if not few:
            return
        self.check_columns(list(few[0].columns))
        rows = [(prompt, texts) for prompt in few for texts in self.probes]
        answers = [[[{"role": "assistant", "content": text}] for text in texts] for _, texts in rows]
        columns = {name: [prompt.columns[name] for prompt, _ in rows] for name in few[0].columns}
        self.ask([[prompt.messages for prompt, _ in rows], *zip(*answers, strict=True)], columns)

    def _overdue(
        self, late: client.Overdue, messages: Mapping[str, list[Any]], taken: Mapping[str, list[Any]]
    ) -> PosttrainError:
        """Where it was, and which row it hangs on: the first that it does not answer alone in the same time."""
        if late.importing:
            return faults.import_overdue(self.file, late)
        assert self.seconds is not None
        prompts, left = messages["prompts"], self.seconds
        for row in range(len(prompts)):
            alone = {name: values[row : row + 1] for name, values in {**messages, **taken}.items()}
            began = time.monotonic()
            try:
                self._call(alone, 1, left)
            except client.Overdue as again:
                return faults.overdue(self.file, self.function, again, self.seconds, len(prompts), (row, prompts[row]))
            except (client.Raised, client.Wrong, client.Ended):
                continue
            finally:
                left = max(0.0, left - (time.monotonic() - began))
        return faults.overdue(self.file, self.function, late, self.seconds, len(prompts), None)


class Reward(FileFunction):
    """A function that judges one answer at a time."""

    arguments = ("prompts", "completions")
    probes = (("",), ("0",), ("I do not know.\n\nAnswer: 42",))

    def __call__(self, prompts: Conversations, completions: Conversations, columns: Columns) -> list[float | None]:
        """One score, or None, for each row. Raises as `ask` does."""
        return self.ask([prompts, completions], columns)

    def golden_cases(self) -> str:
        """How many there are beside the file. Raises RewardError that lists those that do not come out."""
        return golden_cases.asked(self)


F = TypeVar("F", bound=FileFunction)


def load_as(kind: type[F], entry: RewardEntry, runtime: Runtime) -> F:
    """The function of a recipe's entry. The file is read, not run.

    Raises RewardError when there is no such file or function, or it cannot be parsed.
    """
    path, text, name, function = found(entry)
    needs, takes = parameters(path, function, kind.arguments)
    seconds = None if runtime.minutes is None else 60 * runtime.minutes
    return kind(entry.name, str(path), name, needs, takes, hashlib.sha256(text.encode()).hexdigest(), seconds)


def load(entry: RewardEntry, runtime: Runtime = DEFAULT) -> Reward:
    """The reward of a recipe's entry. Raises RewardError as `load_as` does."""
    return load_as(Reward, entry, runtime)
