"""The Llama 3 post-training loop on the Hugging Face stack.

What a program uses; the rest of the package may change between versions:

    from posttrain import load_recipe, run_rounds

    run = run_rounds(load_recipe("quickstart"), 2, "runs/mine")
    print(run.policy, run.rounds[-1].metrics("evaluate")["dev"]["pass@1"])

The functions are those of `posttrain.api`, imported when one is first used; what they raise is in `posttrain.errors`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["evaluate", "load_recipe", "open_run", "run_rounds"]

if TYPE_CHECKING:
    from posttrain.api import evaluate, load_recipe, open_run, run_rounds
else:  # where a type checker looks, a name that is not there is an error

    def __getattr__(name: str) -> Any:
        if name in __all__:
            return getattr(import_module("posttrain.api"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return [*globals(), *__all__]
