"""A filter by the label of a sequence classifier: safety, NSFW or any other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from posttrain import models
from posttrain.config import Model
from posttrain.config.keys import KeyedByName, name_of
from posttrain.errors import ModelError
from posttrain.filters.base import Decide, Filter, FilterContext, Verdict
from posttrain.filters.rows import Rows
from posttrain.system import device


class Classifier(Filter):
    """Drops rows whose prompt or answer a classifier gives its label with `threshold` or more.

    Figure: the label's probability, by softmax, or by sigmoid for a model of one or of independent labels. Prompt and
    answer are read apart, long ones in windows of 512 tokens, of which the highest counts. Does not see: what only the
    two together mean; whatever the model was not trained on, other languages above all.
    """

    use: Literal["classifier"] = "classifier"
    model: Annotated[str, KeyedByName()] = Field(description="A shipped name, a folder (with a slash), or a Hub id.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a Hub id.")
    label: str = Field(description="The label of rows that go, as the model's config calls it (`id2label`).")
    threshold: float = Field(default=0.5, gt=0, le=1, description="Lowest probability at which a row is dropped.")
    on: Literal["both", "prompt", "answer"] = Field(default="both", description="What is classified.")

    def external_hashes(self) -> dict[str, str]:
        return {name_of(self.model): self._resolved().hash}

    def start(self, context: FilterContext) -> Decide:
        from posttrain.engines.classifier import SequenceClassifier

        classifier = SequenceClassifier(self._resolved().path, self.label, device())

        def decide(rows: Rows) -> dict[int, Verdict]:
            parts = {"prompt": rows.prompts, "answer": rows.answers}
            parts = {name: texts for name, texts in parts.items() if self.on in (name, "both")}
            texts = list(dict.fromkeys(text for some in parts.values() for text in some))  # K rows share a prompt
            chances = dict(zip(texts, classifier.probabilities(texts), strict=True))
            verdicts: dict[int, Verdict] = {}
            for name, some in parts.items():
                for i, text in enumerate(some):
                    if i not in verdicts and chances[text] >= self.threshold:
                        verdicts[i] = Verdict(f"{name} is {self.label}", chances[text])
            return verdicts

        return decide

    def _resolved(self) -> models.Resolved:
        try:
            return models.resolve(Model(path=self.model, revision=self.revision))
        except ModelError as error:
            hint = f"filters.model of 'classifier': a folder works without network, as in model: ./{self.model}"
            raise error.replaced(hint=hint) from error
