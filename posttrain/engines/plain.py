"""The plain engine: transformers' own forward with its KV cache, every prompt computed K times.

Slow and hard to get wrong: the other engine is tested against it and falls back to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from posttrain.engines.detokenize import StopStrings, completions
from posttrain.engines.fast_linear import replace_linears
from posttrain.engines.load import Loaded, check_lengths, check_logits
from posttrain.engines.protocol import Capabilities, Completion, Request, SamplingParams
from posttrain.engines.sampler import draw, uniforms, unseeded


class PlainEngine:
    """One completion a row, rows left-padded, nothing shared, nothing dropped before the whole batch is done."""

    name = "plain"
    capabilities = Capabilities(token_ids=True, seeds=True, logprobs=True)

    def __init__(self, loaded: Loaded, rows: int = 64, fallback: str | None = None) -> None:
        self.loaded, self.rows, self.fallback, self._sound = loaded, rows, fallback, False
        if loaded.model.device.type == "cpu":
            replace_linears(loaded.model, loaded.dtype)

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """See `Engine.generate`."""
        check_lengths(self.loaded.context, requests, params)
        flat = [(at, request.prompt_ids, seed) for at, request in enumerate(requests) for seed in request.seeds]
        order = sorted(range(len(flat)), key=lambda at: len(flat[at][1]))
        done: dict[int, Completion] = {}
        for start in range(0, len(order), self.rows):
            chosen = order[start : start + self.rows]
            batch = self._batch([flat[at][1] for at in chosen], [flat[at][2] for at in chosen], params)
            done.update(zip(chosen, batch, strict=True))
        made: list[list[Completion]] = [[] for _ in requests]
        for at, (request, _, _) in enumerate(flat):
            made[request].append(done[at])
        return made

    def _batch(
        self, prompts: list[tuple[int, ...]], seeds: list[int | None], params: SamplingParams
    ) -> list[Completion]:
        loaded, device = self.loaded, self.loaded.model.device
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[loaded.pad_id] * (longest - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        uniform = torch.from_numpy(uniforms(seeds, params.max_new_tokens)).to(device)
        each, greedy = torch.arange(len(prompts), device=device), unseeded(seeds, device)
        tokens: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        ended, live = [False] * len(prompts), set(range(len(prompts)))
        stop = StopStrings(loaded.tokenizer, params.stop) if params.stop else None
        cache: Any = None
        for step in range(params.max_new_tokens):
            out = loaded.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = getattr(out, "past_key_values", None)
            if not self._sound:
                check_logits(out.logits[:, -1], loaded.model, loaded.dtype)
                self._sound = True
            token, logprob = draw(out.logits[:, -1], each, uniform[:, step], params.temperature, params.top_p, greedy)
            for row, (an_id, a_logprob) in enumerate(zip(token.tolist(), logprob.tolist(), strict=True)):
                if row not in live:
                    continue
                if an_id in loaded.eos_ids:
                    ended[row] = True
                    live.discard(row)
                    continue
                tokens[row].append(an_id)
                logprobs[row].append(a_logprob)
                if stop is not None and stop.ends(tokens[row]):
                    live.discard(row)
            if not live:
                break
            new, after = token[:, None], position[:, -1:] + 1
            if cache is None:  # a model without keys and values, such as Mamba: everything again
                new, after = torch.cat([ids, new], dim=1), torch.cat([position, after], dim=1)
            ids, position = new, after
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        return completions(loaded.tokenizer, tokens, logprobs, ended, params.stop)
