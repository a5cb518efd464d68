"""A judge: a model with a rubric. A text is judged again if the model's answer has not the required form."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain import models
from posttrain.config import JudgeModel, Model
from posttrain.errors import EngineError
from posttrain.rewards import judge_prompt
from posttrain.rewards.judge_cache import LEDGER, Entry, Ledger
from posttrain.rewards.judge_client import Endpoint, Question
from posttrain.rewards.judge_local import Local
from posttrain.rewards.rubric import Rubric
from posttrain.storage.pieces import cut

_CHUNK = 256  # texts between two looks at how the judge does
_ENOUGH = 20  # texts of which more than half have no score, and the judge is no judge
_HOT = 0.7  # lowest temperature when a text is judged again: at 0 the answer would be the same

_MORE = "Take a more capable model, or raise max_tokens"

# Prompt and answer; None for the one that the judge is not shown.
Text = tuple[str | None, str | None]


@dataclass(frozen=True)
class Judge:
    """Picklable: each process connects by itself. `ledger`: the cache of judgements; None: no cache."""

    rubric: Rubric
    model: JudgeModel
    ledger: Ledger | None = None

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of all that decides a judgement: rubric, model, prompt, sampling parameters."""
        return identity(self.rubric, self.model)

    def scores(self, texts: Sequence[Text]) -> list[int | None]:
        """The score of each text, on the rubric's scale; None: no score. Equal texts are judged once.

        Raises:
            EngineError: the judge is down, refuses requests, or gives no answers of the required form. Judgements so
                far are cached.
        """
        return [None if text is None else int(text) for text in self.decided(texts)]

    def tags(self, texts: Sequence[Text]) -> list[list[str] | None]:
        """The tags of each text, for a rubric with tags. Raises EngineError as `scores` does."""
        return [None if text is None else judge_prompt.tags(self.rubric, text) for text in self.decided(texts)]

    def decided(self, texts: Sequence[Text]) -> list[str | None]:
        """The judgement of each text, as the model wrote it. Raises EngineError as `scores` does."""
        named = {_hash(text): text for text in texts}
        key = f"{self.rubric.name} {self.identity}"
        known = self.ledger.read(key, list(named)) if self.ledger else {}
        left = [name for name in named if name not in known]
        if left:
            with self._connected() as client:
                try:
                    for names in cut(left, _CHUNK):
                        known |= self._judge(client, {name: named[name] for name in names}, key)
                finally:
                    if self.ledger and client.faults:
                        self.ledger.count(key, client.faults)
        return [known[_hash(text)] for text in texts]

    def probe(self) -> None:
        """Judges a plain text, so that a judge that does not work fails early.

        Raises:
            EngineError: it is down, refuses requests, or cannot answer in the required form.
        """
        plain: Text = ("What is 2 + 3?", "2 + 3 is 5.")
        with self._connected() as client:
            (entry,) = self._attempts(client, {"": plain})
        if entry.decided is None:
            raise EngineError(
                f"the judge {self.model.called} did not answer in the required form, {entry.attempts} times, "
                f"on a plain question. Last: {_cut(entry.answer)}. {_MORE}",
                rule="judge-form",
            )

    def _connected(self) -> contextlib.closing[Endpoint | Local]:
        return contextlib.closing(Local(self.model) if self.model.path else Endpoint(self.model))

    def _judge(self, client: Endpoint | Local, texts: Mapping[str, Text], key: str) -> dict[str, str | None]:
        """Judgements of these texts, by hash, cached as they come; those without a score are written last."""
        known: dict[str, str | None] = {}
        without: list[Entry] = []
        for entry in self._attempts(client, texts):
            known[entry.text] = entry.decided
            if entry.decided is None:
                without.append(entry)
            elif self.ledger:
                self.ledger.write(key, [entry])
        failed = [entry for entry in without if entry.attempts]
        if len(texts) >= _ENOUGH and len(failed) > len(texts) / 2:
            raise EngineError(
                f"the judge {self.model.called} gave no score by {self.rubric.file} to {len(failed)} of {len(texts)} "
                f"texts, asked about up to {self.model.attempts} times. Last: {_cut(failed[-1].answer)}. {_MORE}; what "
                "it had judged is kept",
                rule="judge-no-scores",
            )
        if self.ledger and without:
            self.ledger.write(key, without)
        return known

    def _unfit(self, text: Text) -> str | None:
        """Why a text is not sent to the judge; None if it is."""
        if sum(len(part or "") for part in text) > self.model.max_chars:
            return f"longer than {self.model.max_chars} characters"
        return "says nothing" if text[1] is not None and judge_prompt.hollow(text[1]) else None

    def _attempts(self, client: Endpoint | Local, texts: Mapping[str, Text]) -> Iterator[Entry]:
        """The final entry of each text, after up to `attempts` attempts."""
        left, resent = dict(texts), Counter[str]()
        for name, text in texts.items():
            unfit = self._unfit(text)
            if unfit:
                del left[name]
                yield Entry(name, None, 0, 0, unfit)
        for attempt in range(1, self.model.attempts + 1):
            names, asked_about = list(left), [judge_prompt.question(self.rubric, *text) for text in left.values()]
            hot = max(self.model.temperature, _HOT) if attempt > 1 else self.model.temperature
            for index, reply in client.replies([Question(text, hot, attempt) for text, _ in asked_about]):
                name, (_, code) = names[index], asked_about[index]
                resent[name] += reply.resent
                decided = judge_prompt.read(self.rubric, code, reply.text, reply.cut_off)
                if decided is not None or reply.refused or attempt == self.model.attempts:
                    del left[name]
                    yield Entry(name, decided, attempt, resent[name], reply.refused or reply.text)


def load(rubric: Rubric, model: JudgeModel, folder: Path | None = None) -> Judge:
    """The judge for a rubric and a model. `folder`: where judgements are cached; None: no cache."""
    return Judge(rubric, model, Ledger(folder / LEDGER) if folder else None)


def identity(rubric: Rubric, model: JudgeModel) -> str:
    """SHA-256 of all that decides a judgement: rubric, prompt around it, model and sampling parameters.

    Raises ModelError if a local model is missing.
    """
    which = models.resolve(Model(path=model.path, revision=model.revision)).hash if model.path else None
    decides = [rubric.sha256, judge_prompt.VERSION, model.in_key(), which]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _hash(text: Text) -> str:
    parts = "\0".join(f"{part is None}{part}" for part in text)
    return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()


def _cut(text: str) -> str:
    return repr(text if len(text) <= 200 else f"…{text[-200:]}")
