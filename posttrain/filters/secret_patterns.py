"""The forms of keys and tokens, as those who issue them describe them.

detect-secrets has such patterns too, but reads files line by line through global settings, and much of what it reports
(entropy, words such as "password") is a hint for a person to check. Here are only forms that nothing else has.
"""

from __future__ import annotations

import re
from itertools import chain

# The form of each token, and what a text must hold for it to be worth trying: most texts hold none of it.
_TOKENS = {
    r"(?:AKIA|ASIA)[0-9A-Z]{16}": ("AKIA", "ASIA"),  # AWS access key id
    r"gh[pousr]_[A-Za-z0-9]{36,255}": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),  # GitHub
    r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}": ("github_pat_",),
    r"glpat-[\w-]{20,}": ("glpat-",),  # GitLab
    r"hf_[A-Za-z0-9]{30,}": ("hf_",),  # Hugging Face
    r"sk-(?:proj-|svcacct-|admin-|ant-[a-z0-9]+-)?(?=[\w-]*\d)[\w-]{20,}": ("sk-",),  # OpenAI, Anthropic
    r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}": ("k_live_", "k_test_"),  # Stripe
    r"xox[abeprs]-[A-Za-z0-9-]{10,}": ("xox",),  # Slack
    r"AIza[\w-]{35}": ("AIza",),  # Google
    r"npm_[A-Za-z0-9]{36}": ("npm_",),
    r"pypi-[\w-]{50,}": ("pypi-",),
    r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}": ("eyJ",),  # JWT: header and payload open with {"
}
_PRIVATE_KEY = r"(?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"

NEEDLES: dict[str, tuple[str, ...]] = {
    "private key": ("PRIVATE KEY",),
    "token": tuple(chain.from_iterable(_TOKENS.values())),
    "password": ("://",),
}
# Of a pattern with a group, the group is what is secret.
SECRETS: dict[str, re.Pattern[str]] = {
    "private key": re.compile(rf"-----BEGIN {_PRIVATE_KEY}.*?(?:-----END {_PRIVATE_KEY}|\Z)", re.DOTALL),
    "token": re.compile(rf"(?<![\w-])(?:{'|'.join(_TOKENS)})(?![\w-])"),
    "password": re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://([^\s/:@]{1,100}:[^\s/@]{1,200})@"),
}
