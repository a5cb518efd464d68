"""Keys and values of prompts, shared by their answers, and of the answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from posttrain.engines.attention import HIDDEN, Options, _hidden, causal, scaled, softmax

# Room for new keys: the first, and what it grows by, tokens. It is always read whole, gaps would cost more than zeros
# do (a CPU reads memory with gaps at a quarter of the speed); and products of fewer than 400 terms take a slow path.
_ROOM, _GROWTH = 16, 8

# Prompts that have no row left stay until this share or less has one: moving the others' keys costs too.
_KEEP_PROMPTS_WHILE = 0.75


class Prefix:
    """The keys and values of P prompts, right-padded to L: a layer's values are (P * kv_heads, L, head_dim), its keys
    (P * kv_heads, head_dim, L), which is how a product with them is fastest."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = torch.tensor(list(lengths), device=device)
        self.longest = max(lengths)
        self.even = min(lengths) == self.longest
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    def bias(self, steps: int, window: int | None) -> torch.Tensor | None:
        """What a query `steps` tokens after each prompt's end adds to its scores, (P, L): None where it sees all."""
        short = window is not None and self.longest + steps >= window
        if self.even and not short:
            return None
        at = torch.arange(self.longest, device=self.lengths.device)
        hidden = at >= self.lengths[:, None]
        if short and window is not None:
            hidden |= at <= self.lengths[:, None] + steps - window
        return torch.where(hidden, HIDDEN, 0.0)

    def prefill(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        """Causal attention inside the prompts, (P, heads, L, head_dim); keeps keys and values. Right padding is seen
        by padding alone."""
        prompts, kv_heads, length, dim = key.shape
        self.keys[layer] = key.transpose(2, 3).reshape(prompts * kv_heads, dim, length)
        self.values[layer] = value.reshape(prompts * kv_heads, length, dim)
        return causal(query, key, value, options)


class Pool:
    """Blocks of memory used again and again on a CPU, where touching fresh memory costs more than filling it."""

    def __init__(self, device: torch.device) -> None:
        self._free: list[torch.Tensor] | None = [] if device.type == "cpu" else None

    def take(self, like: torch.Tensor, shape: tuple[int, int, int], rows: int, length: int) -> torch.Tensor:
        """An uninitialised tensor of `shape`, of a block that could hold `rows` of these, on a CPU `length` long."""
        if self._free is None:
            return like.new_empty((max(rows, shape[0]), *shape[1:]))[: shape[0]]
        capacity = max(rows, shape[0]) * max(shape[1], length) * shape[2]
        fitting = [block for block in self._free if len(block) >= capacity and block.dtype == like.dtype]
        block = min(fitting, key=len, default=None)
        if block is None:
            block = like.new_empty(capacity)
        else:
            self._free = [other for other in self._free if other is not block]
        return block.as_strided(shape, (shape[1] * shape[2], shape[2], 1))

    def give(self, tensors: Iterable[torch.Tensor]) -> None:
        """Takes back tensors that came from `take` and are no longer read."""
        if self._free is not None:
            for tensor in tensors:
                whole = tensor.untyped_storage().nbytes() // tensor.element_size()
                self._free.append(tensor.as_strided((whole,), (1,)))


class Suffixes:
    """The keys and values of what N rows have sampled so far, and which prompt each row belongs to.

    A layer's tensors are (N * kv_heads, room, head_dim), zero from `filled` on, ordered by prompt, then head, then row,
    so that the scores of a prompt's rows against its prefix lie as one block (the "grid", as wide as the most rows of
    any prompt; the empty places of others are computed and thrown away). `fork` breaks that order, `keep` restores it.

    `prompt`: (N,) which prompt of the prefix each row belongs to; `start`: (N,) the position of its first token;
    `most_rows`: how many rows there may come to be, for which room is kept; `most`: the most new tokens.
    """

    def __init__(
        self, prefix: Prefix, prompt: torch.Tensor, most_rows: int, kv_heads: int, most: int, pool: Pool
    ) -> None:
        self.prefix, self.most_rows, self.kv_heads, self.filled = prefix, most_rows, kv_heads, 0
        self.pool, self.most = pool, most
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self._bias: dict[int | None, torch.Tensor | None] = {}
        self._arrange(prompt.cpu())

    @property
    def rows(self) -> int:
        """N, those that `keep` has not dropped yet included."""
        return len(self.prompt)

    def _arrange(self, prompt: torch.Tensor) -> None:
        """Puts the rows, whose prompts these are, in order."""
        head = prompt[:, None] * self.kv_heads + torch.arange(self.kv_heads)
        from_rows = head.flatten().argsort(stable=True)
        self._index(prompt, from_rows)

    def _index(self, prompt: torch.Tensor, from_rows: torch.Tensor) -> None:
        """Index maps. prompt: (N,), from_rows: (N * kv_heads,) which (row, head) stands where; both on the CPU."""
        device, heads, places = self.prefix.lengths.device, self.kv_heads, torch.arange(len(from_rows))
        self.prompt, self.prompt_count, self._order = prompt, len(self.prefix.lengths), from_rows
        to_rows = torch.empty_like(from_rows).index_copy_(0, from_rows, places)
        self.from_rows, self.to_rows = from_rows.to(device), to_rows.to(device)
        self.start = self.prefix.lengths[prompt.to(device)]
        self._pick: torch.Tensor | None = None
        self.grid_of: torch.Tensor | None = None
        self.on_grid: torch.Tensor | None = None
        counts = torch.bincount(prompt, minlength=self.prompt_count)
        order = prompt.argsort(stable=True)
        slot = torch.empty_like(prompt).index_copy_(
            0, order, torch.arange(len(prompt)) - (counts.cumsum(0) - counts)[prompt[order]]
        )
        width = int(counts.max())
        grid = (prompt[:, None] * heads + torch.arange(heads)) * width + slot[:, None]
        grid_of = grid.flatten()[from_rows]
        if len(grid_of) != self.prompt_count * heads * width or not torch.equal(grid_of, places):
            on_grid = torch.zeros(self.prompt_count * heads * width, dtype=torch.long).index_copy_(0, grid_of, places)
            self.grid_of, self.on_grid = grid_of.to(device), on_grid.to(device)

    def fork(self, parents: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
        """Copies each of the rows `parents`, (M,): the first ones over the rows `into`, which are lost, the others as
        new rows at the end. Returns the copies' rows, (M,)."""
        device, old, parents, into = into.device, self.rows, parents.cpu(), into.cpu()
        rows = torch.cat([into, torch.arange(old, old + len(parents) - len(into))])
        prompt = torch.cat([self.prompt, self.prompt[parents[len(into) :]]])
        prompt[into] = self.prompt[parents[: len(into)]]
        if not self.keys:  # nothing is stored yet
            self._arrange(prompt)
            return rows.to(device)
        more = torch.arange(old * self.kv_heads, len(prompt) * self.kv_heads)
        self._index(prompt, torch.cat([self._order, more]))
        place = self.to_rows.view(-1, self.kv_heads)
        read = place[parents.to(place.device)].flatten()
        written = place[rows.to(place.device)].flatten()
        for store in (self.keys, self.values):
            for layer, block in store.items():
                # As it is, with more rows at its end, uninitialised: `Pool.take` left room for `most_rows`.
                store[layer] = block.as_strided((len(place) * self.kv_heads, *block.shape[1:]), block.stride())
                store[layer].index_copy_(0, written, block.index_select(0, read))
        return rows.to(device)

    def keep(self, rows: torch.Tensor, most_rows: int) -> None:
        """Drops every row but those of the ascending indices `rows`, of which there may come to be `most_rows`. Puts
        them in order, and drops prompts without rows once they are many."""
        self.most_rows = most_rows
        kept = rows.cpu()
        prompt = self.prompt[kept]
        old_place = self.to_rows.view(-1, self.kv_heads)[rows]
        left = prompt.unique()
        if len(left) <= _KEEP_PROMPTS_WHILE * self.prompt_count:
            self.prefix = _chosen_prompts(self.prefix, left, self.kv_heads)
            prompt = torch.searchsorted(left, prompt)
        self._arrange(prompt)
        moved = old_place.flatten()[self.from_rows]
        for store in (self.keys, self.values):
            for layer, old in store.items():
                new = self._block(old, len(moved), old.shape[1])
                store[layer] = torch.index_select(old, 0, moved, out=new)
                self.pool.give([old])
        self._bias.clear()

    def advance(self) -> None:
        """Counts the tokens that the last forward stored."""
        self.filled += 1
        self._bias.clear()

    def _store(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        room = self.keys[layer].shape[1] if layer in self.keys else 0
        if self.filled == room:
            room += _GROWTH * max(1, room // (4 * _GROWTH)) if room else _ROOM
            for store, like in ((self.keys, key), (self.values, value)):
                grown = self._block(like, len(like), room)
                grown[:, self.filled :] = 0
                if layer in store:
                    grown[:, : self.filled] = store[layer]
                    self.pool.give([store[layer]])
                store[layer] = grown
        keys, values = self.keys[layer], self.values[layer]
        keys[:, self.filled] = key
        values[:, self.filled] = value
        return keys, values

    def _block(self, like: torch.Tensor, blocks: int, room: int) -> torch.Tensor:
        dim = like.shape[-1]
        return self.pool.take(like, (blocks, room, dim), self.most_rows * self.kv_heads, self.most)

    def release(self) -> None:
        """Gives its memory back; nothing may be decoded afterwards."""
        self.pool.give([*self.keys.values(), *self.values.values()])
        self.keys, self.values = {}, {}

    def decode(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        """One new token a row. query: (N, heads, D), key and value: (N, kv_heads, D); returns (N, heads, value_dim)."""
        groups = query.shape[1] // self.kv_heads
        out = self.decode_ordered(
            layer,
            query.reshape(-1, groups * query.shape[-1]).index_select(0, self.from_rows),
            key.reshape(-1, key.shape[-1]).index_select(0, self.from_rows),
            value.reshape(-1, value.shape[-1]).index_select(0, self.from_rows),
            options,
        )
        return self.in_rows(out).view(*query.shape[:2], -1)

    def in_rows(self, out: torch.Tensor) -> torch.Tensor:
        """(N * kv_heads, dim) in this class's order as (N, kv_heads * dim)."""
        return out.index_select(0, self.to_rows).view(self.rows, -1)

    def decode_ordered(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        """The same in this class's order. query: (N * kv_heads, groups * D), key and value: (N * kv_heads, D)."""
        dim, value_dim, blocks = key.shape[-1], value.shape[-1], self.prompt_count * self.kv_heads
        keys, values = self._store(layer, key, value)
        prefix_keys, prefix_values = self.prefix.keys[layer], self.prefix.values[layer]
        longest = prefix_keys.shape[2]
        groups = query.shape[-1] // dim

        on_grid = query if self.on_grid is None else query.index_select(0, self.on_grid)
        shared = scaled(on_grid.view(blocks, -1, dim), prefix_keys.transpose(1, 2), options)
        if options.window not in self._bias:
            self._bias[options.window] = self.prefix.bias(self.filled, options.window)
        bias = self._bias[options.window]
        if bias is not None:
            shared.view(self.prompt_count, -1, longest).add_(bias[:, None, :].to(shared.dtype))
        shared = shared.view(-1, groups * longest)
        if self.grid_of is not None:
            shared = shared.index_select(0, self.grid_of)
        own = scaled(query.view(-1, groups, dim), keys, options)
        own[..., self.filled + 1 :] = _hidden(own)
        if options.window is not None and self.filled >= options.window:
            own[..., : self.filled + 1 - options.window] = _hidden(own)
        weights = softmax(torch.cat([shared.view(-1, groups, longest), own], dim=-1))

        out = torch.bmm(weights[..., longest:], values)
        of_prefix = weights[..., :longest]
        if self.on_grid is not None:
            of_prefix = of_prefix.index_select(0, self.on_grid)
        more = torch.bmm(of_prefix.reshape(blocks, -1, longest), prefix_values).view(-1, groups, value_dim)
        out += more if self.grid_of is None else more.index_select(0, self.grid_of)
        return out.view(-1, groups * value_dim)

    def pick(self, heads: int) -> torch.Tensor:
        """Which of the (N * (heads + 2 * kv_heads)) head vectors of N rows of joint projections stand where in this
        class's order: first those of the queries, then the keys', then the values'."""
        if self._pick is None:
            kv_heads, groups = self.kv_heads, heads // self.kv_heads
            start = self.from_rows // kv_heads * (heads + 2 * kv_heads)
            head = self.from_rows % kv_heads
            of_group = torch.arange(groups, device=start.device)
            queries = (start + head * groups)[:, None] + of_group
            self._pick = torch.cat([queries.flatten(), start + heads + head, start + heads + kv_heads + head])
        return self._pick


def _chosen_prompts(prefix: Prefix, left: torch.Tensor, kv_heads: int) -> Prefix:
    chosen = Prefix(prefix.lengths[left.to(prefix.lengths.device)].tolist(), prefix.lengths.device)
    index = left.to(prefix.lengths.device)
    for layer, old in prefix.keys.items():
        split = old.view(-1, kv_heads, *old.shape[1:])
        chosen.keys[layer] = split[index, ..., : chosen.longest].reshape(-1, old.shape[1], chosen.longest)
    for layer, old in prefix.values.items():
        split = old.view(-1, kv_heads, *old.shape[1:])
        chosen.values[layer] = split[index, :, : chosen.longest].reshape(-1, chosen.longest, old.shape[-1])
    return chosen
