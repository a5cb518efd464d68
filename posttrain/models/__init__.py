"""Model folders: resolving, inspecting and validating them."""

from posttrain.models.compatibility import check_same_tokens, context_length
from posttrain.models.folder import ModelSummary, Resolved, counted, inspect_model, resolve, special_tokens, weights
from posttrain.models.snapshots import check_snapshot

__all__ = [
    "ModelSummary",
    "Resolved",
    "check_same_tokens",
    "check_snapshot",
    "context_length",
    "counted",
    "inspect_model",
    "resolve",
    "special_tokens",
    "weights",
]
