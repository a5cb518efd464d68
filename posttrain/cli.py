"""The command line: which commands there are, and how errors leave it. Each command is a file in `commands/`."""

from __future__ import annotations

import sys

import typer

from posttrain.commands.round import round_
from posttrain.commands.stage import stage
from posttrain.commands.status import status_
from posttrain.commands.verify import verify_
from posttrain.errors import PosttrainError

app = typer.Typer(
    help="The Llama 3 post-training loop: reward model, rejection sampling, filters, SFT, DPO, round after round.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command("round")(round_)
app.command("status")(status_)
app.command("verify")(verify_)
app.command("stage")(stage)


def main() -> None:
    """Console entry: one message and an exit code for what we know of, a traceback for what we do not."""
    try:
        app()
    except PosttrainError as error:
        print(f"posttrain: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
