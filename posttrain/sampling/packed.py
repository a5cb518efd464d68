"""Prompts and their completions in one row of tokens without padding; each completion sees its prompt and itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from posttrain.sampling.attention import HIDDEN, Options, Unsupported, causal, half_products, scaled, softmax


class Packed:
    """The layout of P prompts with up to W completions each, and attention over it.

    `ids` and `position` are (tokens,): first every prompt, then every completion. `last` says where each
    completion's last token is. Padding exists only inside attention: `of_prompt` (P, L) and `of_answer` (P, W, T) say
    which token stands at each place of the padded grids, `back` where on the grids each token stands.
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], device: torch.device
    ) -> None:
        lengths = [len(prompt) for prompt in prompts]
        self.prompts, self.length = len(prompts), max(lengths)
        self.width = max(len(some) for some in answers)
        self.most = max(len(answer) for some in answers for answer in some)
        of_prompt = torch.zeros(self.prompts, self.length, dtype=torch.long)
        of_answer = torch.zeros(self.prompts, self.width, self.most, dtype=torch.long)
        ids: list[int] = []
        position: list[int] = []
        back: list[int] = []
        last: list[int] = []
        for row, prompt in enumerate(prompts):
            of_prompt[row, : len(prompt)] = torch.arange(len(ids), len(ids) + len(prompt))
            back += range(row * self.length, row * self.length + len(prompt))
            ids += prompt
            position += range(len(prompt))
        for row, some in enumerate(answers):
            for column, answer in enumerate(some):
                of_answer[row, column, : len(answer)] = torch.arange(len(ids), len(ids) + len(answer))
                start = self.prompts * self.length + (row * self.width + column) * self.most
                back += range(start, start + len(answer))
                ids += answer
                position += range(lengths[row], lengths[row] + len(answer))
                last.append(len(ids) - 1)
        self.ids, self.position = torch.tensor(ids, device=device), torch.tensor(position, device=device)
        self.back, self.last = torch.tensor(back, device=device), torch.tensor(last, device=device)
        self.of_prompt, self.of_answer = of_prompt.flatten().to(device), of_answer.flatten().to(device)
        self.longest = self.length + self.most
        beyond = torch.arange(self.length) >= torch.tensor(lengths)[:, None]
        self.prompt_bias = torch.where(beyond, HIDDEN, 0.0).to(device) if min(lengths) < self.length else None
        step = torch.arange(self.most)
        self.answer_bias = torch.where(step > step[:, None], HIDDEN, 0.0).to(device)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options) -> torch.Tensor:
        """query: (tokens, heads, D), key and value: (tokens, kv_heads, D); returns (tokens, heads * value_dim)."""
        if options.window is not None and self.longest > options.window:
            raise Unsupported(f"the texts are longer than the sliding window of {options.window}")
        heads, kv_heads, prompts, length = query.shape[1], key.shape[1], self.prompts, self.length
        groups = heads // kv_heads
        of_prompt = [
            part.index_select(0, self.of_prompt).view(prompts, length, -1, part.shape[-1]).transpose(1, 2)
            for part in (query, key, value)
        ]
        first = causal(of_prompt[0], of_prompt[1], of_prompt[2], options).transpose(1, 2).reshape(prompts * length, -1)

        # (P, kv_heads, W, T, groups, D): a prompt's rows in one block for its prefix, a row's in one for itself.
        query = self._answers(query.unflatten(1, (kv_heads, groups)))
        keys, values = self._answers(key[:, :, None]), self._answers(value[:, :, None])
        blocks, rows = prompts * kv_heads, prompts * kv_heads * self.width
        prefix_keys = of_prompt[1].reshape(blocks, length, -1)
        prefix_values = of_prompt[2].reshape(blocks, length, -1)
        with half_products(options.half):
            shared = scaled(query.view(blocks, -1, query.shape[-1]), prefix_keys, options)
        if self.prompt_bias is not None:
            shared.view(prompts, -1, length).add_(self.prompt_bias[:, None].to(shared.dtype))
        own = scaled(query.view(rows, -1, query.shape[-1]), keys.view(rows, self.most, -1), options)
        own.view(rows, self.most, groups, self.most).add_(self.answer_bias[:, None].to(own.dtype))
        weights = softmax(torch.cat([shared.view(rows, -1, length), own], dim=-1))
        out = torch.bmm(weights[..., length:], values.view(rows, self.most, -1))
        with half_products(options.half):
            of_prefix = torch.bmm(weights[..., :length].reshape(blocks, -1, length), prefix_values)
        out += of_prefix.view(out.shape)
        second = out.view(prompts, kv_heads, self.width, self.most, groups, -1).permute(0, 2, 3, 1, 4, 5)
        second = second.reshape(prompts * self.width * self.most, -1)
        return torch.cat([first, second]).index_select(0, self.back)

    def _answers(self, part: torch.Tensor) -> torch.Tensor:
        """(tokens, kv_heads, groups, D) as (P, kv_heads, W, T, groups, D)."""
        picked = part.index_select(0, self.of_answer).view(self.prompts, self.width, self.most, *part.shape[1:])
        return picked.permute(0, 3, 1, 2, 4, 5).contiguous()
