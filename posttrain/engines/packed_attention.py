"""Prompts and their completions in one row of tokens without padding; each completion sees its prompt and itself.

What completions of a prompt begin with alike is there once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from posttrain.engines.attention import HIDDEN, Options, Unsupported, causal, scaled

# Completions are padded to one of these lengths, beyond the last to a multiple of it.
_LENGTHS = (8, 16, 24, 32, 48, 64)
_LOG2_E = math.log2(math.e)


class Packed:
    """The layout of P prompts with any number of completions each, and attention over it.

    `ids` and `position` are (tokens,): first every prompt, then the nodes of every prompt's completions, where those
    that begin with the same tokens share nodes. `last` says where each completion's last token is; `path` where each of
    its tokens is, all completions' one after the other, `sizes` of each; `before`, the token that a node follows.
    Padding exists only inside attention, on three kinds of grid: prompts (P, L); the nodes of a prompt in a row (P, Q),
    for what they see of the prompt; completions of like length (n, T), for what their nodes see of themselves. Each
    grid holds at every place the index of its token.
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], device: torch.device
    ) -> None:
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        self.prompt_tokens, self.prompts, self.device = int(lengths.sum()), len(prompts), device
        tree = _Tree(answers)
        of_prompt = torch.tensor(tree.counts)
        sizes = torch.tensor([len(answer) for some in answers for answer in some])
        self.sizes, path = sizes, torch.tensor(tree.path) + self.prompt_tokens
        ids = [an_id for text in [*prompts, tree.ids] for an_id in text]
        depth = torch.tensor(tree.depth) + torch.repeat_interleave(lengths, of_prompt)
        position = torch.cat([_ranges(lengths), depth])
        self.ids, self.position = torch.tensor(ids, device=device), position.to(device)
        self.path, self.last = path.to(device), path[sizes.cumsum(0) - 1].to(device)
        parent = torch.tensor(tree.parents)
        ends = torch.repeat_interleave(lengths.cumsum(0) - 1, of_prompt)
        self.before = torch.where(parent < 0, ends, parent + self.prompt_tokens).to(device)
        self.length, self.longest = int(lengths.max()), int(position.max()) + 1

        first = lengths.cumsum(0) - lengths
        self.prompt_grid, self.from_prompts = _grid(first, lengths, self.length, device)
        begin = self.prompt_tokens + of_prompt.cumsum(0) - of_prompt
        self.query_grid, self.from_queries = _grid(begin, of_prompt, int(of_prompt.max()), device)
        beyond = torch.arange(self.length) >= lengths[:, None]
        self.prompt_bias = torch.where(beyond, HIDDEN, 0.0).to(device) if beyond.any() else None
        self._buckets(path, sizes, torch.tensor(tree.made))

    def _buckets(self, path: torch.Tensor, sizes: torch.Tensor, made: torch.Tensor) -> None:
        """The grids of completions, and where on them, one after the other, each node stands: shared ones where they
        were made."""
        self.own_grids: list[torch.Tensor] = []
        begin = sizes.cumsum(0) - sizes
        rounded = torch.tensor([_rounded(size) for size in sizes.tolist()])
        place_of = torch.empty(len(path), dtype=torch.long)
        before = 0
        for width in rounded.unique().tolist():
            chosen = (rounded == width).nonzero()[:, 0]
            grid, place = _grid(begin[chosen], sizes[chosen], width, path.device)
            self.own_grids.append(path[grid].view(len(chosen), width).to(self.device))
            place_of[torch.repeat_interleave(begin[chosen], sizes[chosen]) + _ranges(sizes[chosen])] = place + before
            before += grid.numel()
        self.from_own = place_of[made].to(self.device)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options) -> torch.Tensor:
        """query: (tokens, heads, D), key and value: (tokens, kv_heads, D); returns (tokens, heads * value_dim)."""
        if options.window is not None and self.longest > options.window:
            raise Unsupported(f"the texts are longer than the sliding window of {options.window}")
        groups = query.shape[1] // key.shape[1]
        grid = self.prompt_grid.view(self.prompts, self.length)
        of_prompt = [_on(grid, part).transpose(1, 2) for part in (query, key, value)]
        first = causal(of_prompt[0], of_prompt[1], of_prompt[2], options).transpose(1, 2).flatten(0, 1).flatten(1)

        grid = self.query_grid.view(self.prompts, -1)
        bias = None if self.prompt_bias is None else self.prompt_bias[:, None, None]
        seen = _part(_on(grid, query), of_prompt[1], of_prompt[2], groups, bias, options)
        own = [
            _part(
                _on(grid, query),
                _on(grid, key).transpose(1, 2),
                _on(grid, value).transpose(1, 2),
                groups,
                _upper(grid.shape[1], self.device),
                options,
            )
            for grid in self.own_grids
        ]
        of_own = [torch.cat([part[kind] for part in own]) for kind in range(3)]
        out_a, total_a, highest_a = (part.index_select(0, self.from_queries) for part in seen)
        out_b, total_b, highest_b = (part.index_select(0, self.from_own) for part in of_own)
        highest = torch.maximum(highest_a, highest_b)
        share_a, share_b = (highest_a - highest).exp2_(), (highest_b - highest).exp2_()
        total = (total_a * share_a).addcmul_(total_b, share_b)
        second = (out_a * (share_a / total)[..., None]).addcmul_(out_b, (share_b / total)[..., None])
        return torch.cat([first.index_select(0, self.from_prompts), second.flatten(1).to(query.dtype)])


class _Tree:
    """The completions of every prompt as trees: nodes numbered prompt by prompt, each a token after what precedes it.

    `ids`, `depth`, `parents` (-1: the prompt) and `made` (the place in `path` that made it) of each node; `path`: the
    node of every token of every completion, one after the other; `counts`: how many nodes each prompt has.
    """

    def __init__(self, answers: Sequence[Sequence[Sequence[int]]]) -> None:
        self.ids: list[int] = []
        self.depth: list[int] = []
        self.parents: list[int] = []
        self.made: list[int] = []
        self.path: list[int] = []
        self.counts: list[int] = []
        for some in answers:
            before, known = len(self.ids), {}
            for answer in some:
                self._add(answer, known)
            self.counts.append(len(self.ids) - before)

    def _add(self, answer: Sequence[int], known: dict[tuple[int, int], int]) -> None:
        node = -1
        for depth, an_id in enumerate(answer):
            step = (node, an_id)
            node = known.get(step, len(self.ids))
            if node == len(self.ids):
                known[step] = node
                self.ids.append(an_id)
                self.depth.append(depth)
                self.parents.append(step[0])
                self.made.append(len(self.path))
            self.path.append(node)


def _part(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    groups: int,
    bias: torch.Tensor | None,
    options: Options,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Softmax that is not yet divided, for parts of what a token sees: weighted values, sum of weights, highest score
    in powers of 2 (torch's exp takes several times as long as exp2 on some processors).

    query: (n, T, heads, D), key and value: (n, kv_heads, L, D), bias: one that fits (n, kv_heads, T, L).
    Returns (n * T, heads, D) and twice (n * T, heads).
    """
    n, steps, heads, dim = query.shape
    kv_heads, length = key.shape[1], key.shape[2]
    query = query.view(n, steps, kv_heads, groups, dim).transpose(1, 2).reshape(n * kv_heads, steps * groups, dim)
    scores = scaled(query, key.reshape(n * kv_heads, length, -1), options, _LOG2_E).float()
    if bias is not None:
        scores.view(n, kv_heads, steps, groups, length).add_(bias[:, :, :, None])
    highest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(highest).exp2_()
    out = torch.bmm(weights.to(value.dtype), value.reshape(n * kv_heads, length, -1))

    def by_token(part: torch.Tensor) -> torch.Tensor:
        split = part.view(n, kv_heads, steps, groups, part.shape[-1]).transpose(1, 2)
        return split.reshape(n * steps, heads, part.shape[-1])

    return by_token(out), by_token(weights.sum(-1, keepdim=True))[..., 0], by_token(highest)[..., 0]


def _on(grid: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """(tokens, heads, D) on an (n, T) grid: (n, T, heads, D)."""
    return part.index_select(0, grid.flatten()).view(*grid.shape, *part.shape[1:])


def _upper(size: int, device: torch.device) -> torch.Tensor:
    """What hides later tokens: (1, 1, size, size)."""
    step = torch.arange(size, device=device)
    return torch.where(step > step[:, None], HIDDEN, 0.0)[None, None]


def _rounded(size: int) -> int:
    return next((length for length in _LENGTHS if size <= length), -(-size // _LENGTHS[-1]) * _LENGTHS[-1])


def _ranges(sizes: torch.Tensor) -> torch.Tensor:
    """0 … size - 1 for each size, one after the other."""
    ends = sizes.cumsum(0)
    return torch.arange(int(ends[-1])) - torch.repeat_interleave(ends - sizes, sizes)


def _grid(
    begin: torch.Tensor, sizes: torch.Tensor, width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs of tokens as rows of a grid of `width`: which token stands at each place (len(sizes) * width,), any where
    there is none; and the place of each token, run by run."""
    at = torch.arange(width)
    grid = torch.where(at < sizes[:, None], begin[:, None] + at, 0).flatten()
    place = torch.repeat_interleave(torch.arange(len(sizes)) * width, sizes) + _ranges(sizes)
    return grid.to(device), place.to(device)
