"""Samples that were admitted together, and the rows that compute them.

A row is what samples of a prompt have in common: as long as their tokens are the same they are computed as one, and
they part where a draw differs. So K samples of a policy that is sure of itself cost little more than one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from posttrain.engines.kv_cache import Suffixes
from posttrain.engines.protocol import SamplingParams
from posttrain.engines.sampler import draw

# A batch shrinks when this share of its rows or less still runs: moving the keys of the rest costs about one step.
_KEEP_WHILE = 0.8


class Cohort:
    """`samples[i]`: (request, seed index) of each that was admitted; `tokens`, `logprobs`: (samples, most) of what they
    have drawn in `step` steps. `live`: (n,) those that run still, `row`: (n,) the row of each; `parted`: whether each
    has a row of its own, which stays so; `last`: (rows,) the token that each row feeds next.

    suffixes: one row a prompt; prompt: (samples,) that of each; uniform: (samples, most) what they draw with; greedy:
    (samples,) which do not draw, None where all do.
    """

    def __init__(
        self,
        suffixes: Suffixes,
        samples: Sequence[tuple[int, int]],
        prompt: torch.Tensor,
        uniform: torch.Tensor,
        greedy: torch.Tensor | None,
    ) -> None:
        self.suffixes, self.samples, self.uniform, self.greedy = suffixes, samples, uniform, greedy
        self.tokens = torch.zeros(uniform.shape, dtype=torch.int32, device=uniform.device)
        self.logprobs = torch.zeros_like(uniform)
        self.live = torch.arange(len(samples), device=uniform.device)
        self.row, self.last = prompt, prompt.new_zeros(suffixes.rows)
        self.step, self.parted = 0, False

    @property
    def position(self) -> torch.Tensor:
        """Of the token that each row feeds next, (rows,)."""
        return self.suffixes.start + self.suffixes.filled

    def running(self) -> list[tuple[int, int]]:
        """The samples that have not ended."""
        return [self.samples[at] for at in self.live.tolist()]

    def draw(self, logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
        """A token for every live sample, (n,), which is noted. logits: (rows, vocab), overwritten."""
        uniform = self.uniform[self.live, self.step]
        greedy = None if self.greedy is None else self.greedy[self.live]
        token, logprob = draw(logits, self.row, uniform, params.temperature, params.top_p, greedy)
        self.tokens[self.live, self.step] = token.int()
        self.logprobs[self.live, self.step] = logprob
        self.step += 1
        return token

    def drawn(self, places: torch.Tensor, last: int | None = None) -> list[list[int]]:
        """The tokens, all or the last few, of the live samples at these places."""
        first = 0 if last is None else max(0, self.step - last)
        return self.tokens[self.live[places], first : self.step].tolist()

    def drawn_logprobs(self, places: torch.Tensor) -> list[list[float]]:
        """The log-probs of all tokens of the live samples at these places."""
        return self.logprobs[self.live[places], : self.step].tolist()

    def go_on(self, token: torch.Tensor, still: torch.Tensor, vocab: int) -> None:
        """Lets the live samples of the mask `still` feed their tokens, which part those that drew different ones."""
        self.live, self.row, token = self.live[still], self.row[still], token[still]
        if not len(self.live):
            self.suffixes.release()
            return
        if self.parted:
            self.last[self.row] = token
            used = len(self.live)
        else:
            used = self._part(token, vocab)
        if used <= _KEEP_WHILE * self.suffixes.rows or (used == len(self.live) and not self.parted):
            self.parted = used == len(self.live)
            self._drop()

    def _part(self, token: torch.Tensor, vocab: int) -> int:
        """Gives a row to each token that follows a row; returns how many rows are used."""
        branch, of_sample = torch.unique(self.row * vocab + token, return_inverse=True)
        place = branch // vocab
        further = torch.zeros_like(place, dtype=torch.bool)
        further[1:] = place[1:] == place[:-1]
        parents = place[further]
        if len(parents):
            free = torch.ones_like(self.last, dtype=torch.bool).index_fill_(0, place, False)
            place[further] = self.suffixes.fork(parents, free.nonzero()[: len(parents), 0])
        self.row = place[of_sample]
        self.last = place.new_zeros(self.suffixes.rows).index_copy_(0, place, branch % vocab)
        return len(branch)

    def _drop(self) -> None:
        rows = self.row.unique()
        self.suffixes.keep(rows, len(self.live))
        self.row, self.last = torch.searchsorted(rows, self.row), self.last[rows]
