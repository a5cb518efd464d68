"""Checks with the model's own forward, before it is trained, that packed rows give the same as separate ones.

A packed row holds several texts that must not attend to each other. Some models do not support that: they take no
positions, or no mask of (B, 1, L, L), or carry state from token to token. Some of those fail; others silently compute
other values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from posttrain.system import ran_out
from posttrain.training.layout import laid_out, separate

# How far log-probs, or rewards, of packed rows may be from those of separate ones, in float32; in coarser types, as a
# share of the largest.
TOLERANCE, COARSE = 1e-4, 5e-2
# What the configs of transformers call the number of tokens that a layer looks back.
_WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "attention_chunk_size",
    "attention_window_size",
    "window_size",
    "local_attention",
)

Ids = list[int]


@dataclass(frozen=True)
class Rows:
    """The rows of the check: two prompts of different lengths, two responses each, 44 tokens in all."""

    prompts: list[Ids]
    responses: list[list[Ids]]

    def texts(self) -> list[Ids]:
        """Each response, preceded by its prompt."""
        return [[*p, *one] for p, given in zip(self.prompts, self.responses, strict=True) for one in given]


def probe_rows(model: Any, pad: int | None = None) -> Rows:
    """`Rows` of ids within the model's vocabulary, without `pad`."""
    vocab = model.get_input_embeddings().weight.shape[0]

    def text(length: int, start: int) -> Ids:
        ids = [(start + 7 * at) % vocab for at in range(length)]
        return [(an_id + 1) % vocab if an_id == pad else an_id for an_id in ids]

    return Rows([text(9, 3), text(6, 14)], [[text(7, 8), text(3, 5)], [text(4, 11), text(8, 2)]])


def refusal(model: Any, longest: int, measured: Callable[[bool], torch.Tensor]) -> str | None:
    """Why rows of this model must be separate; None if packed ones give the same values.

    longest: tokens of the longest packed row. measured: the values of the training's own forward for a few rows, packed
    (True) or separate (False), in the same order, (n,).

    Two forwards in eval mode are compared, with the training's attention and weights, on a few dozen tokens, without
    gradients. Not covered: autocast and TF32, under which the two differ by rounding (the check runs without them),
    effects of training mode, a sliding window under an unknown config name, and kernels that are chosen by length.
    """
    config = model.config.get_text_config()
    window = _shortest_window(config)
    if window is not None and longest > window:
        return f"the longest packed row has {longest} tokens, and the model looks back {window}"
    try:
        with _quietly(model):
            ours, wanted = measured(True).float(), measured(False).float()
    except Exception as error:
        # Whatever a model makes of inputs that it was not written for: there is no list of that. It is told as it is,
        # and the separate rows, which it is written for, fail with it again where it was not the packing's.
        if ran_out(error):
            raise
        said = (str(error).strip().splitlines() or [""])[0][:200]
        return f"{config.model_type} fails on packed rows ({type(error).__name__}: {said})"
    apart, size = (ours - wanted).abs().max().item(), wanted.abs().max().item()
    coarse = any(weight.dtype in (torch.bfloat16, torch.float16) for weight in model.parameters())
    if not torch.isfinite(wanted).all():  # broken weights, which the training itself tells
        return None
    if apart <= (COARSE * size if coarse else TOLERANCE):  # not so if a packed one is no number
        return None
    return f"{config.model_type} gives other values on packed rows, by {apart:.2g} (up to {size:.2g} in size)"


def answer_log_probs(model: Any, pad: int, is_packed: bool, additive: bool, **forward: Any) -> torch.Tensor:
    """The values for DPO: log-probs of the responses of `probe_rows`, (tokens,). `forward`: further arguments of the
    training's forward."""
    rows = probe_rows(model, pad)
    made = laid_out(rows.prompts, rows.responses, pad, pack=is_packed, additive=additive)
    inputs = {name: value.to(model.device) for name, value in made.inputs.items()}
    logits = model(**inputs, use_cache=False, **forward).logits.float().flatten(0, 1)
    at = [place for spans in made.spans for span in spans for place in span.predicted_at()]
    ids = [an_id for given in rows.responses for one in given for an_id in one]
    return _chosen(logits[at], ids)


def text_log_probs(model: Any, collator: Any, pad: int, is_packed: bool) -> torch.Tensor:
    """The values for SFT: log-probs of the texts of `probe_rows`, (tokens,).

    collator: TRL's padding-free one, which concatenates them into one row, restarts positions, and gives the sequence
    boundaries in each form that kernels use.
    """
    texts = probe_rows(model, pad).texts()
    if is_packed:
        batch = collator([{"input_ids": text} for text in texts])
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        begins = (inputs["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    else:
        inputs = separate([text[:1] for text in texts], [[text[1:]] for text in texts], pad).inputs
        begins = [at * inputs["input_ids"].shape[1] for at in range(len(texts))]
    inputs = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in inputs.items()}
    logits = model(**inputs, use_cache=False).logits.float().flatten(0, 1)
    at = [begin + place for begin, text in zip(begins, texts, strict=False) for place in range(len(text) - 1)]
    return _chosen(logits[at], [an_id for text in texts for an_id in text[1:]])


def _chosen(logits: torch.Tensor, ids: Ids) -> torch.Tensor:
    return logits.log_softmax(-1).gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0]


def _shortest_window(config: Any) -> int | None:
    """The smallest attention window of any layer, in tokens; None if all layers have full attention."""
    kinds = getattr(config, "layer_types", None)
    if kinds and all(kind == "full_attention" for kind in kinds):
        return None
    found = [getattr(config, name, None) for name in _WINDOWS]
    return min((window for window in found if isinstance(window, int) and window > 0), default=None)


@contextmanager
def _quietly(model: torch.nn.Module) -> Iterator[None]:
    """A context for the check: eval mode, IEEE float32, no gradients. Restores all of it and the random state, so that
    a training keeps its bits."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    devices = sorted({weight.device.index or 0 for weight in model.parameters() if weight.device.type == "cuda"})
    backends: Any = torch.backends  # its stub has no fp32_precision
    precision = backends.fp32_precision
    try:
        backends.fp32_precision = "ieee"
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        backends.fp32_precision = precision
        for module in training:
            module.training = True
