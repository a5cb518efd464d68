"""Model folders: where they lie, what is in them, and whether they are what they seem."""

from posttrain.models.compatibility import check_same_tokens, context_length
from posttrain.models.folder import Look, Resolved, look, resolve, special_tokens, weights
from posttrain.models.snapshots import check_snapshot

__all__ = [
    "Look",
    "Resolved",
    "check_same_tokens",
    "check_snapshot",
    "context_length",
    "look",
    "resolve",
    "special_tokens",
    "weights",
]
