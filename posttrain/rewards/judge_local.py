"""A judge that is a local model, run by our own engine in this process."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain import models
from posttrain.config import JudgeModel, Model
from posttrain.errors import DataError
from posttrain.rewards.judge_client import Question, Reply
from posttrain.storage.pieces import cut
from posttrain.system import device

_TOGETHER = 32  # questions in one call: what is kept when a kill comes is whole calls


class Local:
    """Runs a local model. Raises ModelError if it cannot be loaded."""

    def __init__(self, model: JudgeModel) -> None:
        self.model = model
        self.faults: Counter[str] = Counter()  # of a server; here is none
        self._engine, self._tokenizer, self._context = _loaded(
            models.resolve(Model(path=str(model.path), revision=model.revision)).path
        )

    def close(self) -> None:
        """Nothing is open."""

    def replies(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """Each question's index and reply. All questions have the same temperature."""
        from posttrain.engines.protocol import Request, SamplingParams

        ready: list[tuple[int, Request]] = []
        for index, question in enumerate(questions):
            ids = self._ids(question.text)
            if isinstance(ids, str):
                yield index, Reply("", refused=ids)
            else:
                ready.append((index, Request(tuple(ids), (question.seed,))))
        ready.sort(key=lambda one: len(one[1].prompt_ids))
        for some in cut(ready, _TOGETHER):
            params = SamplingParams(questions[some[0][0]].temperature, self.model.max_tokens)
            for (index, _), (said,) in zip(
                some, self._engine.generate([request for _, request in some], params), strict=True
            ):
                yield index, Reply(said.text, said.finish == "length")

    def _ids(self, text: str) -> list[int] | str:
        """The question's tokens, or the reason why it does not fit."""
        from posttrain.data.chat_template import render_prompt

        try:
            ids = render_prompt(self._tokenizer, [{"role": "user", "content": text}])
        except DataError as error:
            return error.message
        if len(ids) + self.model.max_tokens > self._context:
            return f"{len(ids)} tokens and {self.model.max_tokens} for the answer exceed the context of {self._context}"
        return ids


@functools.lru_cache(maxsize=1)
def _loaded(path: Path) -> tuple[Any, Any, int]:
    from transformers import AutoTokenizer

    from posttrain.engines import load_engine

    engine = load_engine(path, device=device())
    return engine, AutoTokenizer.from_pretrained(path), models.context_length(path)
