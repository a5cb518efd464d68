"""Do a reward model's scores in bfloat16 order answers as those in float32 do?

    python benchmarks/scoring_precision.py --model FOLDER --pairs FILE [--fit N] [--test N]

FOLDER is a causal model with a chat template; its reward head is fitted here, by logistic regression on the last hidden
states of N pairs, and scores the next N. FILE: JSONL with prompt, chosen and rejected, as of people's preferences. Each
chosen answer is compared with each rejected one to the same prompt, in both types; where they do not order two answers
alike, how far apart float32 has them is told in standard deviations of all its scores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from posttrain.data.chat_template import render_answers
from posttrain.engines.reward_scorer import Scorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--fit", type=int, default=100)
    parser.add_argument("--test", type=int, default=100)
    given = parser.parse_args()
    with given.pairs.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][: given.fit + given.test]
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    prompts, answers = [], []
    for row in rows:
        prompt, pair = render_answers(tokenizer, [{"role": "user", "content": row["prompt"]}], both(row))
        prompts.append(prompt)
        answers.append(pair)
    head = fitted(given.model, prompts[: given.fit], answers[: given.fit])
    scores = {}
    for dtype in ("float32", "bfloat16"):
        model = reward_model(given.model)
        model.score.weight.data[:] = head
        scores[dtype] = np.array(Scorer(model, dtype, "cpu").score(prompts[given.fit :], answers[given.fit :]))
    print(table(scores["float32"], scores["bfloat16"]))


def both(row: dict[str, str]) -> list[str]:
    return [row["chosen"], row["rejected"]]


def reward_model(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)


@torch.inference_mode()
def fitted(folder: Path, prompts: list[list[int]], answers: list[list[list[int]]]) -> torch.Tensor:
    """The head that scores the chosen answers above the rejected ones, (1, width)."""
    model = reward_model(folder)
    body = getattr(model, model.base_model_prefix)
    states = torch.stack(
        [
            torch.stack(
                [body(input_ids=torch.tensor([[*prompt, *answer]])).last_hidden_state[0, -1] for answer in pair]
            )
            for prompt, pair in zip(prompts, answers, strict=True)
        ]
    )
    differences = states[:, 0] - states[:, 1]
    scale = differences.std(0)
    with torch.inference_mode(False), torch.enable_grad():
        x = (differences / scale).clone()
        weight = torch.zeros(x.shape[1], requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=0.01)
        for _ in range(200):
            optimizer.zero_grad()
            (torch.nn.functional.softplus(-x @ weight).mean() + 0.01 * weight.square().sum()).backward()
            optimizer.step()
    return (weight.detach() / scale)[None]


def table(exact: np.ndarray, fast: np.ndarray) -> str:
    """`exact`, `fast`: scores in float32 and bfloat16, (pairs, 2)."""
    margins, after = exact[:, 0] - exact[:, 1], fast[:, 0] - fast[:, 1]
    alike = np.sign(margins) == np.sign(after)
    apart = np.abs(margins[~alike]).max(initial=0) / exact.std()
    lines = [
        "| pairs | same order | right in float32 | right in bfloat16 | error of a score | widest pair turned round |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| {len(exact)} | {alike.mean():.3f} | {(margins > 0).mean():.3f} | {(after > 0).mean():.3f} "
        f"| {np.sqrt(np.square(fast - exact).mean()) / exact.std():.4f} sd | {apart:.4f} sd |",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
