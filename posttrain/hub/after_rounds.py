"""Pushes promoted rounds during a run, in a thread: no stage waits for the network, and a failed push does not fail the
run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from posttrain.config import Push
from posttrain.errors import PosttrainError
from posttrain.hub.client import HubClient
from posttrain.hub.plan import Kind, data_repo, make, policy_key, promoted_rounds
from posttrain.hub.upload import push, sign_in
from posttrain.storage import pushed
from posttrain.storage.pushed import Pushed
from posttrain.storage.store import Store


class AfterRounds:
    """Pushes each finished round; call `finish` at the end. `say` receives messages."""

    def __init__(self, run: Store, section: Push, client: Callable[[], HubClient], say: Callable[[str], None]) -> None:
        self.run, self.section, self._client, self._say = run, section, client, say
        self._done: queue.Queue[int | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="push", daemon=True)
        self._thread.start()

    def round_done(self, number: int, ran: bool = True) -> None:
        self._done.put(number)

    def finish(self) -> None:
        """Waits for pending pushes, and retries failed ones once."""
        self._done.put(None)
        self._thread.join()

    def _work(self) -> None:
        self._try(lambda: sign_in(self._client()))  # a token that is refused fails now, not after hours
        last = 0
        for number in iter(self._done.get, None):
            last = number
            if self._done.empty():  # else a later round is done already: both go at once
                self._try(lambda last=last: self._push(last))
        self._try(lambda: self._push(last))

    def _try(self, do: Callable[[], None]) -> None:
        """Runs one push; a failure is reported and left for the next time."""
        try:
            do()
        except Exception as error:  # a push never ends the run
            known = str(error) if isinstance(error, PosttrainError) else f"the push failed: {type(error).__name__}"
            self._say(f"warning: {known}\n  the run goes on; tried again after the next round, or by posttrain push")

    def _push(self, last: int) -> None:
        """Pushes all rounds up to this one that are not on the Hub yet, oldest first."""
        waiting = pending(self.run, self.section, last)
        if not waiting:
            return
        to, section = self.section.to, self.section
        plans = make(self.run, to, private=section.private, data=section.data, numbers=waiting)
        client = self._client()
        with self.run.lock("push.lock"):
            sign_in(client)
            for plan in plans:
                push(plan, client, self._note)

    def _note(self, one: Pushed) -> None:
        pushed.add(self.run, one)
        self._say(f"pushed {one.tag} to {one.repo}")


def pending(run: Store, section: Push, last: int) -> list[int]:
    """Promoted rounds up to `last` that are not in `pushed.json`."""
    repos: list[tuple[str, Kind]] = [(section.to, "model")]
    if section.data:
        repos.append((data_repo(section.to), "dataset"))
    entries = {entry["round"]: entry for entry in run.read_run().get("rounds", [])}
    return [
        number
        for number in promoted_rounds(run)
        if number <= last
        and not all(pushed.has(run, repo, kind, number, policy_key(entries[number]["policy"])) for repo, kind in repos)
    ]
