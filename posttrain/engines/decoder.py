"""A model driven by shared-prefix attention: a lean form where there is one, else transformers' own forward.

Either is first compared with the plain model, and refused where it would not be the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from posttrain.engines.attention import Options, check_equal
from posttrain.engines.fast_linear import replace_linears
from posttrain.engines.fused_llama import LeanLlama
from posttrain.engines.hf_attention import active, fitting, use_in
from posttrain.engines.kv_cache import Pool, Prefix, Suffixes
from posttrain.engines.load import Loaded


def fitting_decoder(loaded: Loaded) -> Decoder:
    """The fastest decoder that is the same function as the model, which it may change in place.

    Raises:
        Unsupported: none is; the model still serves the plain engine.
    """
    model, lean, hooked = loaded.model, partial(LeanDecoder, loaded), partial(HookedDecoder, loaded)
    decoder = fitting(model, loaded.dtype, lean, hooked, _Probe(loaded).compare)
    if isinstance(decoder, HookedDecoder) and model.device.type == "cpu":
        replace_linears(model, loaded.dtype)
    return decoder


class LeanDecoder:
    """`LeanLlama` with its attention: two forwards, `prefill` for prompts and `step` for one token of every running
    row. `token_bytes`: of a token's keys and values, which are kept in the type of the products: attention reads all of
    them at every step."""

    def __init__(self, loaded: Loaded, dtype: torch.dtype) -> None:
        self.model, self.pad_id, self.device = LeanLlama(loaded.model, dtype), loaded.pad_id, loaded.model.device
        self.kv_heads = self.model.kv_heads
        self.token_bytes = 2 * len(self.model.layers) * self.kv_heads * self.model.dim * self.model.attended.itemsize

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Prefix, torch.Tensor]:
        """The prompts' keys and values, and the logits after each prompt's last token, (prompts, vocab)."""
        prefix, ids, position = _padded(prompts, self.pad_id, self.device)
        model = self.model

        def attend(layer: int, joint: torch.Tensor, options: Options) -> torch.Tensor:
            heads = joint.view(*ids.shape, -1, model.dim).transpose(1, 2)
            query, key, value = heads.split([model.heads, model.kv_heads, model.kv_heads], dim=1)
            return prefix.prefill(layer, query, key, value, options).transpose(1, 2).flatten(0, 1).flatten(1)

        stream = model(ids.flatten(), position.flatten(), prefix.longest, attend)
        start = torch.arange(0, ids.numel(), prefix.longest, device=self.device)
        return prefix, model.logits(stream[start + prefix.lengths - 1])

    def step(self, token: torch.Tensor, position: torch.Tensor, cohorts: Sequence[Suffixes]) -> torch.Tensor:
        """Feeds one token a row, the rows of all cohorts one after the other; the next logits, (rows, vocab)."""
        model = self.model

        def attend(layer: int, joint: torch.Tensor, options: Options) -> torch.Tensor:
            parts, start = [], 0
            for cohort in cohorts:
                queries = cohort.rows * model.heads
                heads = joint[start : start + cohort.rows].view(-1, model.dim)
                heads = heads.index_select(0, cohort.pick(model.heads))
                key, value = heads[queries:].chunk(2)
                query = heads[:queries].view(len(key), -1)
                parts.append(cohort.in_rows(cohort.decode_ordered(layer, query, key, value, options)))
                start += cohort.rows
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        longest = max(cohort.prefix.longest + cohort.filled + 1 for cohort in cohorts)
        stream = model(token, position, longest, attend)
        for cohort in cohorts:
            cohort.advance()
        return model.logits(stream)


class HookedDecoder:
    """The same two forwards (see `LeanDecoder`) by transformers' own forward, with its attention replaced."""

    def __init__(self, loaded: Loaded) -> None:
        self.model, self.pad_id, self.device = loaded.model, loaded.pad_id, loaded.model.device
        config = loaded.model.config.get_text_config()
        self.kv_heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.token_bytes = 2 * config.num_hidden_layers * self.kv_heads * dim * loaded.model.dtype.itemsize
        use_in(loaded.model)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Prefix, torch.Tensor]:
        """See `LeanDecoder`."""
        prefix, ids, position = _padded(prompts, self.pad_id, self.device)
        row, last = torch.arange(len(prompts), device=self.device), prefix.lengths - 1
        # The head is computed for the last token alone: a hook, as `logits_to_keep` wants one place for all rows.
        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][row, last][:, None],))
        active.prefix = prefix
        try:
            out = self.model(input_ids=ids, position_ids=position, use_cache=False)
        finally:
            active.prefix = None
            hook.remove()
        return prefix, out.logits[:, -1]

    def step(self, token: torch.Tensor, position: torch.Tensor, cohorts: Sequence[Suffixes]) -> torch.Tensor:
        """See `LeanDecoder`."""
        active.cohorts = cohorts
        try:
            out = self.model(input_ids=token[:, None], position_ids=position[:, None], use_cache=False)
        finally:
            active.cohorts = ()
        for cohort in cohorts:
            cohort.advance()
        return out.logits[:, -1]


Decoder = LeanDecoder | HookedDecoder


def _padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Prefix, torch.Tensor, torch.Tensor]:
    """An empty prefix, and ids and positions padded on the right, (prompts, longest)."""
    prefix = Prefix([len(prompt) for prompt in prompts], device)
    rows = [list(prompt) + [pad_id] * (prefix.longest - len(prompt)) for prompt in prompts]
    ids = torch.tensor(rows, device=device)
    return prefix, ids, torch.arange(prefix.longest, device=device).expand_as(ids)


class _Probe:
    """Two prompts, two and one samples of four tokens; the logits that the plain model gives for each."""

    def __init__(self, loaded: Loaded) -> None:
        self.model = loaded.model
        vocab = self.model.get_output_embeddings().weight.shape[0]
        self.texts = [[(7 * at + 11 * row + 3) % vocab for at in range(14 - 5 * (row == 2))] for row in range(3)]
        self.texts[1][:10] = self.texts[0][:10]
        with torch.inference_mode():
            self.wanted = [
                self.model(input_ids=torch.tensor([text], device=self.model.device), use_cache=False)
                .logits[0, -5:]
                .float()
                for text in self.texts
            ]

    @torch.inference_mode()
    def compare(self, decoder: Decoder) -> None:
        """Raises Unsupported where the decoder's logits are not the plain model's."""
        prefix, first = decoder.prefill([self.texts[0][:10], self.texts[2][:5]])
        suffixes = Suffixes(prefix, torch.tensor([0, 0, 1]), 3, decoder.kv_heads, 4, Pool(decoder.device))
        position = torch.tensor([10, 10, 5], device=decoder.device)
        got = [first[[0, 0, 1]]]
        for step in range(4):
            token = torch.tensor([text[step - 4] for text in self.texts], device=decoder.device)
            got.append(decoder.step(token, position + step, [suffixes]))
        tolerance = 1e-4 if self.model.dtype == torch.float32 else 5e-2
        for row, theirs in enumerate(self.wanted):
            check_equal(torch.stack([logits[row] for logits in got]), theirs, tolerance, "logits")
