"""`posttrain chat`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from posttrain.commands.terminal import say
from posttrain.storage.redact import redact


def chat_(
    model: Annotated[str, typer.Argument(help="A run's folder (its promoted policy), a model's folder, or a Hub id.")],
    system: Annotated[str | None, typer.Option("--system", help="A system message.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest token.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="The sampling seed, for a temperature above 0.")] = 0,
) -> None:
    """Chat with a model through its chat template. /reset starts a new conversation, /quit ends.

    posttrain chat runs/quickstart

    echo "Mia has 7 apples and buys 12 more. How many has she?" | posttrain chat runs/quickstart
    """
    from posttrain.errors import InputError
    from posttrain.inference.models import Conversation

    talk = Conversation(model, system, temperature, max_new_tokens, seed)
    interactive = sys.stdin.isatty()
    if interactive:
        say("/reset forgets what was said, /quit ends")
    while True:
        try:
            text = input("> " if interactive else "").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if text == "/quit":
            break
        if text == "/reset":
            talk.reset()
        elif text:
            try:
                talk.reply(text, lambda piece: say(piece, end=""))
                say("")
            except InputError as error:
                say(redact(str(error)), error=True)
