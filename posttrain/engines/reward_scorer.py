"""Scores completions by a reward model; a prompt is computed once for all its completions.

Equal completions of a prompt are scored once. If the model does not support this (see `Scorer.fallback`), each
completion is computed with its prompt, in batches sorted by length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from posttrain.engines.attention import Options, Unsupported, check_equal
from posttrain.engines.batches import by_length, of_prompts
from posttrain.engines.fast_linear import replace_linears
from posttrain.engines.fused_llama import LeanLlama
from posttrain.engines.hf_attention import NAME, active, fitting, use_in
from posttrain.engines.load import kept_dtype, loaded_dtype, pick_dtype, without_router_logits
from posttrain.engines.packed_attention import Packed
from posttrain.errors import ModelError
from posttrain.system import keep_memory

# Tokens in one forward: enough that starting operations costs little, few enough for a CPU's cache.
_TOKENS = 4096
_PLAIN_TOKENS = 8192

Ids = Sequence[int]


def without_padding(answer: Ids, pad_id: Any) -> Ids:
    """The answer without padding at its end: as transformers does, the score is read at the last token before it."""
    end = len(answer)
    while end and answer[end - 1] == pad_id:
        end -= 1
    return answer[:end]


class Scorer:
    """A sequence-classification model with one label, ready to score.

    `model` is changed in place: moved to `device`, cast, put into eval mode. `dtype` as in `load_engine`.
    `fallback` says why prompts are not shared, None where they are.
    """

    def __init__(self, model: Any, dtype: str = "float32", device: str | None = None) -> None:
        device = device or str(model.device)
        chosen = pick_dtype(dtype, device, model)
        self.model = model.to(device=device, dtype=kept_dtype(chosen, device)).eval()
        self.device = self.model.device
        without_router_logits(model.config)
        config = model.config.get_text_config()
        if config.num_labels != 1:
            raise ModelError(f"a reward model gives one score; this one has num_labels={config.num_labels}")
        self.pad_id: int | None = config.pad_token_id
        self.fallback: str | None = None
        self._forward: _Forward | None = None
        self._own_attention: str = config._attn_implementation
        if self.device.type == "cpu":
            keep_memory()
        try:
            self._forward = self._fitting(chosen)
        except Unsupported as error:
            self.fallback = f"prompts are not shared: {error}"
        if not isinstance(self._forward, _Lean) and self.device.type == "cpu":
            replace_linears(self.model, chosen)

    def _fitting(self, dtype: torch.dtype) -> _Forward:
        """The fastest forward with the plain model's scores.

        Raises:
            Unsupported: there is none.
        """
        vocab = self.model.get_input_embeddings().weight.shape[0]
        prompts = [[(7 * at + 11 * row + 3) % vocab for at in range(length)] for row, length in enumerate((6, 9))]
        answers = [[[(5 * at + row) % vocab for at in range(length)] for length in (3, 7)] for row in (1, 2)]
        texts = [prompt + answer for prompt, some in zip(prompts, answers, strict=True) for answer in some]
        wanted = torch.tensor(self._plain(texts))
        tolerance = 1e-4 if self.device.type == "cpu" else 5e-2

        def compare(forward: _Forward) -> None:
            check_equal(forward(prompts, answers).cpu(), wanted, tolerance, "scores")

        return fitting(self.model, dtype, partial(_Lean, self.model), partial(_Hooked, self.model), compare)

    @torch.inference_mode()
    def score(self, prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]]) -> list[list[float]]:
        """The logit of each completion (token ids, end token included) of each prompt.

        As transformers does, the last token that is not padding is read.
        """
        result = [[0.0] * len(some) for some in completions]
        kept = [[tuple(without_padding(answer, self.pad_id)) for answer in some] for some in completions]
        pairs = [(at, k) for at, some in enumerate(completions) for k in range(len(some))]
        alone = [(at, k) for at, k in pairs if self._forward is None or not kept[at][k]]
        texts = [[*prompts[at], *completions[at][k]] for at, k in alone]
        for (at, k), value in zip(alone, self._plain(texts), strict=True):
            result[at][k] = value
        if self._forward is None:
            return result
        distinct: list[dict[tuple[int, ...], list[int]]] = [{} for _ in prompts]
        for at, k in pairs:
            if kept[at][k]:
                distinct[at].setdefault(kept[at][k], []).append(k)
        sizes = [sum(map(len, some)) for some in distinct]
        for chosen in of_prompts([len(prompt) for prompt in prompts], sizes, _TOKENS):
            values = iter(self._shared([prompts[at] for at in chosen], [list(distinct[at]) for at in chosen]))
            for at in chosen:
                for of_answer in distinct[at].values():
                    value = next(values)
                    for k in of_answer:
                        result[at][k] = value
        return result

    def _shared(self, prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]]) -> list[float]:
        assert self._forward is not None
        try:
            return self._forward(prompts, answers).tolist()
        except Unsupported:  # longer than a sliding window
            return self._plain([[*p, *answer] for p, some in zip(prompts, answers, strict=True) for answer in some])

    @torch.inference_mode()
    def _plain(self, texts: Sequence[Ids]) -> list[float]:
        """Whole texts in batches sorted by length. Raises ValueError where one has no token."""
        if not all(texts):
            raise ValueError("a text without a token has no score")
        scores = [0.0] * len(texts)
        hooked = isinstance(self._forward, _Hooked)
        if hooked and texts:
            self.model.set_attn_implementation(self._own_attention)
        fill, most = self.pad_id or 0, 0 if self.pad_id is None else _PLAIN_TOKENS
        for batch in by_length([len(text) for text in texts], most):
            longest = len(texts[batch[0]])
            ids = torch.tensor([[*texts[at], *[fill] * (longest - len(texts[at]))] for at in batch])
            mask = torch.tensor([[1] * len(texts[at]) + [0] * (longest - len(texts[at])) for at in batch])
            out = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
            for at, value in zip(batch, out.logits[:, 0].float().tolist(), strict=True):
                scores[at] = value
        if hooked and texts:
            self.model.set_attn_implementation(NAME)
        return scores


class _Lean:
    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.model, self.device = LeanLlama(model, dtype), model.device

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]]) -> torch.Tensor:
        """Scores, (completions,)."""
        model, packed = self.model, Packed(prompts, answers, self.device)

        def attend(_: int, joint: torch.Tensor, options: Options) -> torch.Tensor:
            query, key, value = joint.split([model.heads, model.kv_heads, model.kv_heads], dim=1)
            return packed.attend(query, key, value, options)

        stream = model(packed.ids, packed.position, packed.longest, attend)
        return model.logits(stream[packed.last])[:, 0].float()


class _Hooked:
    def __init__(self, model: Any) -> None:
        self.model, self.device = model, model.device
        use_in(model)

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]]) -> torch.Tensor:
        """Scores, (completions,)."""
        packed = Packed(prompts, answers, self.device)
        body = getattr(self.model, self.model.base_model_prefix)
        active.packed = packed
        try:
            out = body(input_ids=packed.ids[None], position_ids=packed.position[None], use_cache=False)
        finally:
            active.packed = None
        return self.model.score(out.last_hidden_state[0, packed.last])[:, 0].float()


_Forward = _Lean | _Hooked


def load_scorer(path: str | Path, dtype: str = "float32", device: str = "cpu") -> Scorer:
    """The reward model of a folder.

    Raises:
        ModelError: it cannot be loaded or has more than one label.
    """
    from posttrain.engines.reward_head import load_reward_model

    try:
        model = load_reward_model(path, dtype=loaded_dtype(dtype, device))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot load a reward model from {path}: {error}", file=str(path)) from error
    return Scorer(model, dtype, device)
