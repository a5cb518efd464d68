"""The default engine: a prompt is computed once for its K samples, and what is finished leaves the batch.

Prompts are taken by length, so that those computed together need little padding. A group of prompts admitted together
is a cohort: its rows are always at the same step, so their keys need no mask. Cohorts share each forward; one is
admitted when the rows still running leave room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from posttrain.records import Completion
from posttrain.sampling import attention
from posttrain.sampling.answers import StopStrings, completions
from posttrain.sampling.decoder import fitting_decoder
from posttrain.sampling.draws import draw, uniforms
from posttrain.sampling.loading import Loaded, check_lengths
from posttrain.sampling.protocol import Capabilities, Request, SamplingParams

# A batch shrinks when this share of it or less still runs: moving the keys of the rest costs about one step.
_KEEP_WHILE = 0.8


@dataclass
class _Cohort:
    """Rows admitted together. `row_of[i]` is (request, seed index) of row i; tensors have one row each."""

    suffixes: attention.Suffixes
    row_of: list[tuple[int, int]]
    position: torch.Tensor
    uniform: torch.Tensor
    last: torch.Tensor
    tokens: list[torch.Tensor] = field(default_factory=list)
    logprobs: list[torch.Tensor] = field(default_factory=list)
    finished: set[int] = field(default_factory=set)


class SharedPrefixEngine:
    """See the module. `rows` is how many samples run at once.

    Raises:
        attention.Unsupported: the model cannot be run this way; it is left as it was.
    """

    name = "shared-prefix"
    capabilities = Capabilities(token_ids=True, seeds=True, logprobs=True, stop_strings=True)
    fallback: str | None = None

    def __init__(self, loaded: Loaded, rows: int = 256) -> None:
        self.loaded, self.rows = loaded, rows
        self.decoder = fitting_decoder(loaded)
        self.pool = attention.Pool(self.decoder.device)

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """See `Engine.generate`."""
        check_lengths(self.loaded, requests, params)
        run = _Run(self, requests, params)
        run.all()
        return [[answers[at] for at in range(len(answers))] for answers in run.made]


class _Run:
    """One call of `generate`."""

    def __init__(self, engine: SharedPrefixEngine, requests: Sequence[Request], params: SamplingParams) -> None:
        self.loaded, self.decoder, self.rows = engine.loaded, engine.decoder, engine.rows
        self.requests, self.params = requests, params
        self.device, self.pool = self.decoder.device, engine.pool
        self.stop = StopStrings(self.loaded.tokenizer, params.stop) if params.stop else None
        self.eos = torch.tensor(sorted(self.loaded.eos_ids), device=self.device)
        wanted = [at for at, request in enumerate(requests) if request.seeds]
        self.waiting = sorted(wanted, key=lambda at: len(requests[at].prompt_ids), reverse=True)
        self.made: list[dict[int, Completion]] = [{} for _ in requests]
        self.cohorts: list[_Cohort] = []

    def all(self) -> None:
        """Until nothing waits and nothing runs."""
        while self.waiting or self.cohorts:
            running = sum(cohort.suffixes.rows for cohort in self.cohorts)
            if self.waiting and running <= self.rows // 2:
                self._admit(self.rows - running)
            elif self.cohorts:
                self._step()

    def _admit(self, room: int) -> None:
        """Takes waiting prompts for about `room` rows, computes them and draws their first tokens."""
        taken: list[int] = []
        while self.waiting and (not taken or room >= len(self.requests[self.waiting[-1]].seeds)):
            taken.append(self.waiting.pop())
            room -= len(self.requests[taken[-1]].seeds)
        prompts = [self.requests[at].prompt_ids for at in taken]
        prefix, logits = self.decoder.prefill(prompts)
        counts = [len(self.requests[at].seeds) for at in taken]
        most = self.params.max_new_tokens
        suffixes = attention.Suffixes(prefix, counts, self.decoder.kv_heads, most, self.pool)
        repeats = torch.tensor(counts, device=self.device)
        seeds = [seed for at in taken for seed in self.requests[at].seeds]
        cohort = _Cohort(
            suffixes,
            [(at, k) for at in taken for k in range(len(self.requests[at].seeds))],
            torch.repeat_interleave(prefix.lengths, repeats),
            torch.from_numpy(uniforms(seeds, most)).to(self.device),
            repeats.new_empty(0),
        )
        self._take(cohort, torch.repeat_interleave(logits, repeats, dim=0))
        self.cohorts = [one for one in (*self.cohorts, cohort) if one.row_of]

    def _step(self) -> None:
        """One token for every row."""
        cohorts = self.cohorts
        last = torch.cat([cohort.last for cohort in cohorts])
        position = torch.cat([cohort.position for cohort in cohorts])
        logits = self.decoder.step(last, position, [cohort.suffixes for cohort in cohorts])
        start = 0
        for cohort in cohorts:
            rows = cohort.suffixes.rows
            cohort.position += 1
            self._take(cohort, logits[start : start + rows])
            start += rows
        self.cohorts = [cohort for cohort in cohorts if cohort.row_of]

    def _take(self, cohort: _Cohort, logits: torch.Tensor) -> None:
        """Draws a token for each row of a cohort, closes the rows that it ends and drops them where that pays."""
        params, step = self.params, len(cohort.tokens)
        token, logprob = draw(logits, cohort.uniform[:, step], params.temperature, params.top_p)
        cohort.last = token
        cohort.tokens.append(token)
        cohort.logprobs.append(logprob)
        ended = (token[:, None] == self.eos).any(-1)
        if step + 1 == params.max_new_tokens:
            over = torch.ones_like(ended)
        else:
            over = ended
            if self.stop is not None:
                over = ended | self._stopped(cohort, token)
        closing = [row for row in over.nonzero()[:, 0].tolist() if row not in cohort.finished]
        if not closing:
            return
        self._close(cohort, closing, ended)
        cohort.finished.update(closing)
        rows = len(cohort.row_of)
        if len(cohort.finished) == rows:
            cohort.row_of = []
            cohort.suffixes.release()
        elif rows - len(cohort.finished) <= _KEEP_WHILE * rows:
            self._drop(cohort)

    def _stopped(self, cohort: _Cohort, token: torch.Tensor) -> torch.Tensor:
        assert self.stop is not None
        over = torch.zeros(len(token), dtype=torch.bool)
        for row, an_id in enumerate(token.tolist()):
            if an_id in self.stop.may_end and row not in cohort.finished:
                over[row] = self.stop.ends([int(part[row]) for part in cohort.tokens[-self.stop.window :]])
        return over.to(token.device)

    def _close(self, cohort: _Cohort, rows: list[int], ended: torch.Tensor) -> None:
        index = torch.tensor(rows, device=self.device)
        tokens = torch.stack([part[index] for part in cohort.tokens], dim=1).tolist()
        logprobs = torch.stack([part[index] for part in cohort.logprobs], dim=1).tolist()
        by_end = ended[index].tolist()
        tokens = [row[:-1] if end else row for row, end in zip(tokens, by_end, strict=True)]
        logprobs = [row[:-1] if end else row for row, end in zip(logprobs, by_end, strict=True)]
        texts = completions(self.loaded.tokenizer, tokens, logprobs, by_end, self.params.stop)
        for row, completion in zip(rows, texts, strict=True):
            request, at = cohort.row_of[row]
            self.made[request][at] = completion

    def _drop(self, cohort: _Cohort) -> None:
        left = [row for row in range(len(cohort.row_of)) if row not in cohort.finished]
        index = torch.tensor(left, device=self.device)
        cohort.suffixes.keep(index)
        cohort.row_of = [cohort.row_of[row] for row in left]
        cohort.position, cohort.uniform, cohort.last = (
            cohort.position[index],
            cohort.uniform[index],
            cohort.last[index],
        )
        cohort.tokens = [part[index] for part in cohort.tokens]
        cohort.logprobs = [part[index] for part in cohort.logprobs]
        cohort.finished = set()
