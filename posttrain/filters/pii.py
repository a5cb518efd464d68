"""Personal data and secrets: masked, or their rows dropped. Off unless a recipe names it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any, Literal, get_args

from pydantic import Field

from posttrain.filters.base import Decide, Filter, FilterContext, Mask, Verdict
from posttrain.filters.extras import check_installed
from posttrain.filters.rows import Rows
from posttrain.filters.secret_patterns import NEEDLES, SECRETS

Kind = Literal["private key", "token", "password", "e-mail", "IBAN", "card", "IP", "phone"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # keys before what they may hold
TEXTS = ("prompt", "completion", "chosen", "rejected", "edited", "messages")

Spans = Iterator[tuple[int, int]]

_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]*@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)\b")
_CARD = re.compile(
    r"(?<![\w.,-])(?:3[47]\d\d([ -]?)\d{6}\1\d{5}|[2-6]\d{3}([ -]?)\d{4}\2\d{4}\2\d{1,7})(?![\w-]|[.,]\d)"
)
_DOTTED = re.compile(r"\.\d{1,3}\.")
_IPV4 = re.compile(r"(?<![\w.])(?<!ersion )(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_UNICAST = IPv6Network("2000::/3")


class PersonalData(Filter):
    """Masks e-mail addresses, phone, card and bank account numbers, public IPs, keys and tokens; or drops their rows.

    Prompt and answers are searched, system messages and rejected answers too, other columns are not. In masked text
    `[EMAIL]` stands for an address and so on; the `tokens` of a masked answer become null, as they spell out what was
    masked. Phone numbers need phonenumbers (`posttrain[pii]`). Figure: the number of findings. Does not see: names and
    postal addresses, birthdays, passwords in prose, keys without a known form, numbers in words, private IP addresses;
    takes one in ten random numbers of a card's length for a card (its check digit says no more).
    """

    use: Literal["pii"] = "pii"
    mode: Literal["mask", "drop"] = Field(default="mask", description="write over what was found, or drop the row")
    kinds: tuple[Kind, ...] = Field(default=KINDS, strict=False, description="what is looked for")
    region: str | None = Field(
        default=None,
        pattern="^[A-Z]{2}$",
        description="country, as in US, whose phone numbers are found without +; null: numbers with + alone",
    )

    def start(self, context: FilterContext) -> Decide:
        wanted = [kind for kind in KINDS if kind in self.kinds]
        finders = {kind: _phones(self.region) if kind == "phone" else _FINDERS[kind] for kind in wanted}

        def masked(text: str, found: Counter[str]) -> str:
            for kind, spans in finders.items():
                places = list(spans(text))
                found.update({kind: len(places)} if places else {})
                for start, end in reversed(places):
                    text = f"{text[:start]}[{kind.replace('-', '').upper()}]{text[end:]}"
            return text

        def decide(rows: Rows) -> dict[int, Verdict | Mask]:
            verdicts: dict[int, Verdict | Mask] = {}
            columns = {name: rows.column(name) for name in TEXTS if rows.has(name)}
            for i in range(len(rows)):
                found: Counter[str] = Counter()
                changed = {}
                for name, values in columns.items():
                    value = _mapped(values[i], lambda text, found=found: masked(text, found))
                    if value != values[i]:
                        changed[name] = value
                if found and self.mode == "drop":
                    verdicts[i] = Verdict(next(iter(found)), found.total())
                elif found:
                    spelt_out = {"tokens": None} if rows.has("tokens") and rows.answer_column in changed else {}
                    verdicts[i] = Mask(found, changed | spelt_out)
            return verdicts

        return decide


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A text, or the contents of a chat's messages, changed."""
    if isinstance(value, str):
        return change(value)
    return value and [{**turn, "content": change(turn["content"]) if turn["content"] else None} for turn in value]


def _matches(pattern: re.Pattern[str], needles: Sequence[str]) -> Callable[[str], Spans]:
    def find(text: str) -> Spans:
        if not any(needle in text for needle in needles):
            return iter(())
        return (match.span(match.lastindex or 0) for match in pattern.finditer(text))

    return find


def _ibans(text: str) -> Spans:
    """ISO 13616: the first four signs moved to the end, letters as 10 to 35, the number is 1 modulo 97."""
    for match in _IBAN.finditer(text):
        groups = match[0].split(" ")
        for count in range(len(groups), 0, -1):  # a word in capitals after it looks like one more group
            iban = "".join(groups[:count])
            if 15 <= len(iban) <= 34 and int("".join(str(int(sign, 36)) for sign in iban[4:] + iban[:4])) % 97 == 1:
                yield match.start(), match.start() + len(" ".join(groups[:count]))
                break


def _cards(text: str) -> Spans:
    """ISO/IEC 7812: from the right, every second digit doubled; the sum of all digits is 0 modulo 10."""
    for match in _CARD.finditer(text):
        digits = [int(sign) for sign in reversed(match[0]) if sign.isdigit()]
        total = sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])
        if total % 10 == 0:
            yield match.span()


def _ips(text: str) -> Spans:
    if not _DOTTED.search(text) and text.count(":") < 2:
        return iter(())
    spans = [match.span() for match in _IPV4.finditer(text) if _is_ip(match[0])]
    if text.count(":") > 1:
        spans += [match.span() for match in _IPV6.finditer(text) if _is_ip(match[0])]
    return iter(sorted(spans))


def _is_ip(text: str) -> bool:
    """Whether it is an address that somebody has on the public net."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return address in _UNICAST if isinstance(address, IPv6Address) else address.is_global


def _phones(region: str | None) -> Callable[[str], Spans]:
    check_installed("pii", "the filter 'pii'", ", or name `kinds` without phone")
    import phonenumbers

    # The library is slow: it is asked only about texts with enough digits in a row.
    opened = r"[+＋(]?\d" if region else r"[+＋]\(?\d"
    likely = re.compile(opened + r"(?:[\s().\-/]{0,3}\d){6,}")

    def find(text: str) -> Spans:
        if not likely.search(text):
            return iter(())
        return ((match.start, match.end) for match in phonenumbers.PhoneNumberMatcher(text, region))

    return find


_FINDERS: dict[str, Callable[[str], Spans]] = {
    **{kind: _matches(pattern, NEEDLES[kind]) for kind, pattern in SECRETS.items()},
    "e-mail": _matches(_EMAIL, "@"),
    "IBAN": _ibans,
    "card": _cards,
    "IP": _ips,
}
