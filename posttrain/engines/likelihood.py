"""Log-likelihoods of continuations under a language model; a context is computed once for all of its own.

If the model does not support this (see `Likelihoods.fallback`), each continuation is computed with its context, in
batches sorted by length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from posttrain.engines.attention import Options, Unsupported, check_equal
from posttrain.engines.batches import by_length, of_prompts
from posttrain.engines.fast_linear import replace_linears
from posttrain.engines.fused_llama import LeanLlama
from posttrain.engines.hf_attention import NAME, active, fitting, use_in
from posttrain.engines.load import Loaded, check_logits
from posttrain.engines.packed_attention import Packed

_TOKENS = 4096  # in one forward
_LOGITS = 1 << 26  # of one forward

Ids = Sequence[int]


class Likelihood(NamedTuple):
    """`tokens`: the natural log-probability of each token, (tokens,) float32; `greedy`: whether each is the likeliest
    one."""

    tokens: torch.Tensor
    greedy: bool

    @property
    def total(self) -> float:
        return float(self.tokens.sum())


class Likelihoods:
    """A causal language model, ready to score, at a temperature. `loaded` is changed in place."""

    def __init__(self, loaded: Loaded, temperature: float = 1.0) -> None:
        self.temperature = temperature
        self.loaded, self.model, self.device = loaded, loaded.model, loaded.model.device
        self.fallback: str | None = None
        self._forward: _Forward | None = None
        self._own_attention: str = self.model.config.get_text_config()._attn_implementation
        self._rows = max(1, _LOGITS // self.model.get_output_embeddings().weight.shape[0])
        self._sound = False  # once its first logits were looked at
        try:
            self._forward = self._fitting()
        except Unsupported as error:
            self.fallback = f"contexts are not shared: {error}"
        if not isinstance(self._forward, _Lean) and self.device.type == "cpu":
            replace_linears(self.model, loaded.dtype)

    def _fitting(self) -> _Forward:
        """The fastest forward with the plain model's logits.

        Raises:
            Unsupported: there is none.
        """
        vocab = self.model.get_output_embeddings().weight.shape[0]
        contexts = [[(7 * at + 11 * row + 3) % vocab for at in range(length)] for row, length in enumerate((4, 6))]
        answers = [[[(5 * at + row) % vocab for at in range(length)] for length in (2, 5)] for row in (1, 2)]
        texts = [[*one, *answer] for one, some in zip(contexts, answers, strict=True) for answer in some]
        with torch.inference_mode():
            wanted = [self.model(input_ids=torch.tensor([one], device=self.device), use_cache=False) for one in texts]
        after = [
            out.logits[0, -1 - len(answer) : -1].float()
            for out, answer in zip(wanted, [answer for some in answers for answer in some], strict=True)
        ]
        tolerance = 1e-4 if self.model.dtype == torch.float32 else 5e-2

        @torch.inference_mode()
        def compare(forward: _Forward) -> None:
            packed = Packed(contexts, answers, self.device)
            rows = packed.before[packed.path - packed.prompt_tokens]
            check_equal(forward(packed, rows).float(), torch.cat(after), tolerance, "logits")

        return fitting(self.model, self.loaded.dtype, partial(_Lean, self.model), partial(_Hooked, self.model), compare)

    @torch.inference_mode()
    def of(self, contexts: Sequence[Ids], continuations: Sequence[Sequence[Ids]]) -> list[list[Likelihood]]:
        """That of each continuation of each context, as token ids.

        Raises:
            ValueError: a context or a continuation is empty, or both are more than the model's context takes.
        """
        self._check(contexts, continuations)
        found: list[list[Likelihood]] = [[] for _ in contexts]
        sizes = [sum(map(len, some)) for some in continuations]
        for chosen in of_prompts([len(one) for one in contexts], sizes, _TOKENS, self._rows):
            some = [continuations[at] for at in chosen]
            values = iter(self._batch([contexts[at] for at in chosen], some))
            for at in chosen:
                found[at] = [next(values) for _ in continuations[at]]
        return found

    def _check(self, contexts: Sequence[Ids], continuations: Sequence[Sequence[Ids]]) -> None:
        for at, (context, some) in enumerate(zip(contexts, continuations, strict=True)):
            if not context or not all(some):
                raise ValueError(f"text {at} has an empty context or continuation")
            length = len(context) + max(map(len, some), default=0)
            if length > self.loaded.context:
                raise ValueError(f"text {at} has {length} tokens, the model's context {self.loaded.context}")

    def _batch(self, contexts: Sequence[Ids], continuations: Sequence[Sequence[Ids]]) -> list[Likelihood]:
        """Of all continuations, one after the other."""
        if self._forward is not None:
            try:
                return self._packed(contexts, continuations)
            except Unsupported:  # longer than a sliding window
                pass
        pairs = [(context, one) for context, some in zip(contexts, continuations, strict=True) for one in some]
        return self._plain(pairs)

    def _packed(self, contexts: Sequence[Ids], continuations: Sequence[Sequence[Ids]]) -> list[Likelihood]:
        assert self._forward is not None
        packed = Packed(contexts, continuations, self.device)
        rows, of_node = torch.unique(packed.before, return_inverse=True)
        logits = self._forward(packed, rows)
        self._look(logits)
        logprob, greedy = _of_tokens(self._tempered(logits), of_node, packed.ids[packed.prompt_tokens :])
        path = packed.path - packed.prompt_tokens
        return _of_texts(logprob[path], greedy[path], packed.sizes.tolist())

    def _plain(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[Likelihood]:
        """Whole texts, padded on the right: what follows a token does not change what it predicts."""
        found: list[Likelihood | None] = [None] * len(pairs)
        if isinstance(self._forward, _Hooked):
            self.model.set_attn_implementation(self._own_attention)
        for batch in by_length([len(context) + len(one) for context, one in pairs], self._rows):
            texts = [[*pairs[at][0], *pairs[at][1]] for at in batch]
            longest = len(texts[0])
            ids = torch.tensor([[*text, *[self.loaded.pad_id] * (longest - len(text))] for text in texts])
            mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
            out = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False)
            self._look(out.logits[:, 0])
            for row, at in enumerate(batch):
                context, one = pairs[at]
                logits = out.logits[row, len(context) - 1 : len(context) + len(one) - 1]
                each = torch.arange(len(one), device=self.device)
                of_tokens = _of_tokens(self._tempered(logits), each, torch.tensor(one, device=self.device))
                found[at] = _of_texts(*of_tokens, [len(one)])[0]
        if isinstance(self._forward, _Hooked):
            self.model.set_attn_implementation(NAME)
        return [one for one in found if one is not None]

    def _tempered(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self.temperature == 1 else logits / self.temperature

    def _look(self, logits: torch.Tensor) -> None:
        if not self._sound:
            check_logits(logits, self.model, self.loaded.dtype)
            self._sound = True


def _of_tokens(logits: torch.Tensor, row: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each token, (tokens,) float32, and whether it is the likeliest, (tokens,) bool.

    logits: (rows, vocab); row: (tokens,) the row that predicts each; ids: (tokens,).
    """
    logits = logits.float()
    total, likeliest = logits.logsumexp(-1), logits.argmax(-1)
    return logits[row, ids] - total[row], likeliest[row] == ids


def _of_texts(logprob: torch.Tensor, greedy: torch.Tensor, sizes: Sequence[int]) -> list[Likelihood]:
    """The tokens' values, text by text."""
    parts = zip(logprob.split(list(sizes)), greedy.split(list(sizes)), strict=True)
    return [Likelihood(part, bool(likeliest.all())) for part, likeliest in parts]


class _Lean:
    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.model = LeanLlama(model, dtype)

    def __call__(self, packed: Packed, rows: torch.Tensor) -> torch.Tensor:
        """The logits after these tokens, (rows, vocab)."""
        model = self.model

        def attend(_: int, joint: torch.Tensor, options: Options) -> torch.Tensor:
            query, key, value = joint.split([model.heads, model.kv_heads, model.kv_heads], dim=1)
            return packed.attend(query, key, value, options)

        return model.logits(model(packed.ids, packed.position, packed.longest, attend)[rows])


class _Hooked:
    def __init__(self, model: Any) -> None:
        self.model = model
        use_in(model)

    def __call__(self, packed: Packed, rows: torch.Tensor) -> torch.Tensor:
        """See `_Lean`."""
        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, rows],))
        active.packed = packed
        try:
            out = self.model(input_ids=packed.ids[None], position_ids=packed.position[None], use_cache=False)
        finally:
            active.packed = None
            hook.remove()
        return out.logits[0]


_Forward = _Lean | _Hooked
