"""Which shards of a stage a process makes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Which of a stage's shards a process makes, where several share them: every `of`-th from `index` on; none where
    `of` is 0, for who only reads what others made."""

    index: int = 0
    of: int = 0

    def has(self, shard: int) -> bool:
        return self.of > 0 and shard % self.of == self.index
