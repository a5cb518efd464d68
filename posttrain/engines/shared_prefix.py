"""The default engine: a prompt is computed once for its K samples, these are computed as one until their tokens differ,
and what is finished leaves the batch.

Prompts are taken by length, so that those computed together need little padding. The samples admitted together are a
cohort: its rows are always at the same step, so their keys need no mask. Cohorts share each forward; one is admitted
when the samples still running leave room.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import psutil
import torch

from posttrain.engines.cohort import Cohort
from posttrain.engines.decoder import fitting_decoder
from posttrain.engines.detokenize import StopStrings, completions
from posttrain.engines.kv_cache import Pool, Suffixes
from posttrain.engines.load import Loaded, check_lengths, check_logits
from posttrain.engines.protocol import Capabilities, Completion, Request, SamplingParams
from posttrain.engines.sampler import uniforms, unseeded
from posttrain.system import ran_out

# Beyond this many samples at once a step's fixed cost no longer shows.
_AT_ONCE = {"cpu": 2048, "cuda": 4096}
# Tokens of prompts, padding included, that are computed at once.
_PREFILL_TOKENS = 16384


@dataclass(frozen=True)
class _Part:
    """Samples `first` to `first + count` of a request."""

    request: int
    first: int
    count: int


class SharedPrefixEngine:
    """See the module. `at_once`: how many samples run together; None: as many as pay and fit into memory.

    Raises:
        attention.Unsupported: the model cannot be run this way; the plain engine still can.
    """

    name = "shared-prefix"
    capabilities = Capabilities(token_ids=True, seeds=True, logprobs=True)
    fallback: str | None = None

    def __init__(self, loaded: Loaded, at_once: int | None = None) -> None:
        self.loaded, self.at_once = loaded, at_once
        self.decoder = fitting_decoder(loaded)
        self.pool = Pool(self.decoder.device)
        self.sound = False  # once its first logits were looked at
        self._stops: dict[tuple[str, ...], StopStrings] = {}

    def stop_strings(self, stop: tuple[str, ...]) -> StopStrings:
        """Made once: it decodes the whole vocabulary."""
        if stop not in self._stops:
            self._stops[stop] = StopStrings(self.loaded.tokenizer, stop)
        return self._stops[stop]

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """See `Engine.generate`. Where memory runs out the batch is halved, for this call and those after it."""
        check_lengths(self.loaded.context, requests, params)
        run = _Run(self, requests, params, self.at_once or self._fitting(requests, params))
        run.all()
        if run.shrunk:
            self.at_once = run.at_once
        return [[answers[at] for at in range(len(answers))] for answers in run.made]

    def _fitting(self, requests: Sequence[Request], params: SamplingParams) -> int:
        device = self.decoder.device
        samples = max(1, sum(len(request.seeds) for request in requests))
        shared = sum(len(request.prompt_ids) for request in requests) / samples
        logits = 12 * self.loaded.model.get_output_embeddings().weight.shape[0]
        each = self.decoder.token_bytes * (params.max_new_tokens + shared) + logits
        memory = _cpu_memory(psutil.virtual_memory().total) if device.type == "cpu" else _free(device) // 2
        return max(1, min(_AT_ONCE.get(device.type, 1024), int(memory / each)))


def _cpu_memory(total: int) -> int:
    """Bytes that keys, values and logits may take in a process on a CPU, of a machine's `total`: an eighth of each
    core's share, since each core may have such a process.

    A power of 2 and of what is built in, not of what is free now: the same requests then make the same batches whatever
    else runs. Another batch can change the last bits of logits, and with them a draw between two equal candidates.
    """
    share = total // (8 * (os.cpu_count() or 1))
    return 1 << max(27, min(32, share.bit_length() - 1))


def _free(device: torch.device) -> int:
    """Bytes of a GPU that are free, those included that torch keeps from work that is done."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


class _Run:
    """One call of `generate`."""

    def __init__(
        self, engine: SharedPrefixEngine, requests: Sequence[Request], params: SamplingParams, at_once: int
    ) -> None:
        self.engine, self.loaded, self.decoder, self.at_once = engine, engine.loaded, engine.decoder, at_once
        self.shrunk = False
        self.requests, self.params = requests, params
        self.device, self.pool = self.decoder.device, engine.pool
        self.stop = engine.stop_strings(params.stop) if params.stop else None
        self.eos = torch.tensor(sorted(self.loaded.eos_ids), device=self.device)
        self.waiting = self._ordered([_Part(at, 0, len(request.seeds)) for at, request in enumerate(requests)])
        self.made: list[dict[int, Completion]] = [{} for _ in requests]
        self.cohorts: list[Cohort] = []
        self.admitting: list[tuple[int, int]] = []

    def _ordered(self, parts: Iterable[_Part]) -> list[_Part]:
        """The next to be taken last: shortest prompts first. No part has more samples than run at once."""
        cut = [
            _Part(part.request, first, min(self.at_once, part.first + part.count - first))
            for part in parts
            for first in range(part.first, part.first + part.count, self.at_once)
        ]
        return sorted(cut, key=lambda part: (-len(self.requests[part.request].prompt_ids), -part.request, -part.first))

    def all(self) -> None:
        """Until nothing waits and nothing runs."""
        while self.waiting or self.cohorts:
            try:
                self._advance()
            except RuntimeError as error:
                if not ran_out(error) or self.at_once == 1:
                    raise
                self._shrink()

    def _advance(self) -> None:
        taken = sum(cohort.suffixes.most_rows for cohort in self.cohorts)  # for these there is room kept
        if taken <= self.at_once // 2:
            while self.waiting and taken + self.waiting[-1].count <= self.at_once:
                taken += self._admit(self.at_once - taken)
        if self.cohorts:
            self._step()

    def _shrink(self) -> None:
        """Half as many; what was running starts again, with the same seeds."""
        under_way = [one for cohort in self.cohorts for one in cohort.running()] + self.admitting
        self.at_once, self.shrunk = max(1, min(self.at_once, len(under_way)) // 2), True
        for cohort in self.cohorts:
            cohort.suffixes.release()
        self.cohorts, self.admitting = [], []
        self.waiting = self._ordered([*self.waiting, *_parts(under_way)])
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _admit(self, room: int) -> int:
        """Takes waiting parts of up to `room` samples, computes their prompts and draws their first tokens."""
        taken: list[_Part] = []
        while self.waiting and self.waiting[-1].count <= room:
            length = len(self.requests[self.waiting[-1].request].prompt_ids)  # the longest so far
            if taken and length * (len(taken) + 1) > _PREFILL_TOKENS:
                break
            taken.append(self.waiting.pop())
            room -= taken[-1].count
        samples = [(part.request, at) for part in taken for at in range(part.first, part.first + part.count)]
        self.admitting = samples
        prefix, logits = self.decoder.prefill([self.requests[part.request].prompt_ids for part in taken])
        if not self.engine.sound:
            check_logits(logits, self.loaded.model, self.loaded.dtype)
            self.engine.sound = True
        prompts, most = torch.arange(len(taken)), self.params.max_new_tokens
        seeds = [self.requests[at].seeds[k] for at, k in samples]
        uniform = torch.from_numpy(uniforms(seeds, most)).to(self.device)
        suffixes = Suffixes(prefix, prompts, len(samples), self.decoder.kv_heads, most, self.pool)
        prompt = torch.repeat_interleave(prompts, torch.tensor([part.count for part in taken]))
        cohort = Cohort(suffixes, samples, prompt.to(self.device), uniform, unseeded(seeds, self.device))
        self._take(cohort, logits)
        self.admitting = []
        if len(cohort.live):
            self.cohorts.append(cohort)
        return cohort.suffixes.most_rows if len(cohort.live) else 0

    def _step(self) -> None:
        """One token for every row."""
        cohorts = self.cohorts
        last = torch.cat([cohort.last for cohort in cohorts])
        position = torch.cat([cohort.position for cohort in cohorts])
        counts = [cohort.suffixes.rows for cohort in cohorts]
        logits = self.decoder.step(last, position, [cohort.suffixes for cohort in cohorts])
        for cohort, part in zip(cohorts, logits.split(counts), strict=True):
            self._take(cohort, part)
        self.cohorts = [cohort for cohort in cohorts if len(cohort.live)]

    def _take(self, cohort: Cohort, logits: torch.Tensor) -> None:
        """Draws a token for each sample of a cohort, closes the samples that it ends; the others go on."""
        token = cohort.draw(logits, self.params)
        ended = (token[:, None] == self.eos).any(-1)
        over = ended
        if cohort.step == self.params.max_new_tokens:
            over = torch.ones_like(ended)
        elif self.stop is not None:
            over = ended | self._stopped(cohort, token)
        closing = over.nonzero()[:, 0]
        if len(closing):
            self._close(cohort, closing, ended[closing].tolist())
        cohort.go_on(token, ~over, logits.shape[-1])

    def _stopped(self, cohort: Cohort, token: torch.Tensor) -> torch.Tensor:
        assert self.stop is not None
        may = torch.tensor([an_id in self.stop.may_end for an_id in token.tolist()], dtype=torch.bool)
        over = may.to(token.device)
        tokens = cohort.drawn(over.nonzero()[:, 0], self.stop.window)
        over[over.clone()] = torch.tensor([self.stop.ends(row) for row in tokens], device=over.device, dtype=torch.bool)
        return over

    def _close(self, cohort: Cohort, closing: torch.Tensor, by_end: list[bool]) -> None:
        """Notes the answers of the live samples at these places. by_end: whether an end token ended them."""
        tokens = [row[:-1] if end else row for row, end in zip(cohort.drawn(closing), by_end, strict=True)]
        logprobs = [row[:-1] if end else row for row, end in zip(cohort.drawn_logprobs(closing), by_end, strict=True)]
        answers = completions(self.loaded.tokenizer, tokens, logprobs, by_end, self.params.stop)
        for sample, completion in zip(cohort.live[closing].tolist(), answers, strict=True):
            request, at = cohort.samples[sample]
            self.made[request][at] = completion


def _parts(samples: Iterable[tuple[int, int]]) -> list[_Part]:
    """(request, sample) pairs as parts of samples that follow one another."""
    parts: list[_Part] = []
    for _, run in groupby(enumerate(sorted(samples)), key=lambda one: (one[1][0], one[1][1] - one[0])):
        (_, (request, first)), *others = run
        parts.append(_Part(request, first, 1 + len(others)))
    return parts
