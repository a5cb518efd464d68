"""A transformers model driven by shared-prefix attention, and the check that it then still is the same model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from posttrain.sampling import attention
from posttrain.sampling.loading import Loaded


class SharedDecoder:
    """Two forwards: `prefill` for prompts, `step` for one token of every running row.

    Raises:
        attention.Unsupported: the model's logits would not be its own; it is left as it was.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.model, self.pad_id = loaded.model, loaded.pad_id
        self.device = loaded.model.device
        config = loaded.model.config.get_text_config()
        self.kv_heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        before = config._attn_implementation
        attention.register()
        try:
            self._check(before)
        except Exception as error:
            loaded.model.set_attn_implementation(before)
            if isinstance(error, attention.Unsupported):
                raise
            raise attention.Unsupported(f"its forward failed with shared prefixes: {error}") from error

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[attention.Prefix, torch.Tensor]:
        """The prompts' keys and values, and the logits after each prompt's last token, (prompts, vocab)."""
        prefix = attention.Prefix([len(prompt) for prompt in prompts], self.device)
        ids = torch.full((len(prompts), prefix.longest), self.pad_id)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        ids = ids.to(self.device)
        position = torch.arange(prefix.longest, device=self.device).expand_as(ids)
        row, last = torch.arange(len(prompts), device=self.device), prefix.lengths - 1
        # The head is computed for the last token alone: a hook, as `logits_to_keep` wants one place for all rows.
        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][row, last][:, None],))
        attention.active.prefix = prefix
        try:
            out = self.model(input_ids=ids, position_ids=position, use_cache=False)
        finally:
            attention.active.prefix = None
            hook.remove()
        return prefix, out.logits[:, -1]

    def step(self, token: torch.Tensor, position: torch.Tensor, cohorts: Sequence[attention.Suffixes]) -> torch.Tensor:
        """Feeds one token a row, the rows of all cohorts one after the other; the next logits, (rows, vocab)."""
        attention.active.cohorts = cohorts
        try:
            out = self.model(input_ids=token[:, None], position_ids=position[:, None], use_cache=False)
        finally:
            attention.active.cohorts = ()
        for cohort in cohorts:
            cohort.advance()
        return out.logits[:, -1]

    @torch.inference_mode()
    def _check(self, before: str) -> None:
        """Compares logits with the plain model's: two prompts, two and one samples, four tokens each."""
        vocab = self.model.get_output_embeddings().weight.shape[0]
        texts = [[(7 * at + 11 * row + 3) % vocab for at in range(14 - 5 * (row == 2))] for row in range(3)]
        texts[1][:10] = texts[0][:10]
        wanted = []
        for text in texts:
            ids = torch.tensor([text], device=self.device)
            wanted.append(self.model(input_ids=ids, use_cache=False).logits[0, -5:])
        self.model.set_attn_implementation(attention.NAME)
        prefix, first = self.prefill([texts[0][:10], texts[2][:5]])
        suffixes = attention.Suffixes(prefix, [2, 1], self.kv_heads, 4, 4)
        position = torch.tensor([10, 10, 5], device=self.device)
        got = [first[[0, 0, 1]]]
        for step in range(4):
            token = torch.tensor([text[step - 4] for text in texts], device=self.device)
            got.append(self.step(token, position + step, [suffixes]))
        for row, theirs in enumerate(wanted):
            ours = torch.stack([logits[row] for logits in got]).float()
            exact = _is_float32(self.model)
            apart = (ours - theirs.float()).abs().max().item()
            allowed = (1e-4 if exact else 5e-2) * (1 + theirs.abs().max().item())
            if not apart <= allowed:
                raise attention.Unsupported(f"its logits differ from the plain model's by {apart:.2g} (start-up check)")


def _is_float32(model: torch.nn.Module) -> bool:
    return all(part.dtype == torch.float32 for part in model.parameters())
