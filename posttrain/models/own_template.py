"""The chat template that a recipe names: a file, or one of several that a model brings."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from posttrain import shipped
from posttrain.config.model import is_template_file
from posttrain.errors import ModelError, in_file
from posttrain.models import json_files
from posttrain.storage import user_cache
from posttrain.storage.files import canonical_json

FILE = "chat_template.jinja"
_MORE = "additional_chat_templates"  # a folder of NAME.jinja
_SOURCE = "chat_template.source"  # in a folder of links: the file that the template was read from
_HOLD_TEMPLATES = (FILE, "chat_template.json", "tokenizer_config.json", _MORE)
_LARGEST = 1 << 20  # bytes of a template; the longest of well-known models has 20,000


def templates(folder: Path) -> dict[str, str]:
    """The chat templates of a model folder by name; a single one is called `default`.

    Raises:
        ModelError: they are no text, or have no names.
    """
    with in_file(folder / "tokenizer_config.json"):
        found = _named(json_files.read(folder / "tokenizer_config.json").get("chat_template"))
    if json_files.there(folder / FILE):
        found["default"] = _text(folder / FILE)
    for path in sorted((folder / _MORE).glob("*.jinja")):
        found[path.stem] = _text(path)
    return found


def check_choice(folder: Path) -> None:
    """Raises ModelError where there are several templates and none of them is the default."""
    found = templates(folder)
    if found and "default" not in found:
        raise ModelError(
            f"the model has several chat templates and no default: {', '.join(sorted(found))}",
            file=str(folder),
            hint=f"choose one in the recipe, as in model.chat_template: {min(found)}",
            rule="template-no-default",
        )


def where(folder: Path) -> str:
    """The file that the model's chat template is in; where the recipe names a file, that one."""
    source, file = folder / _SOURCE, folder / FILE
    if source.is_file():
        return source.read_text("utf-8")
    return str(file if file.is_file() else folder / "tokenizer_config.json")


def with_template(folder: Path, digest: str, chosen: str) -> tuple[Path, str]:
    """A folder of links to the files of `folder`, with the template that is `chosen`: a file, or a name of the model's
    own. And the hash of both, `digest` being that of `folder`.

    It lies in the user's cache. What is trained from it has the template in a file of its own.

    Raises:
        ModelError: the model has no template of that name, or there is no such file.
    """
    source = shipped.locate("data", chosen) if is_template_file(chosen) else None
    text = _text(source) if source else _chosen(folder, chosen)
    combined = hashlib.sha256(canonical_json({"model": digest, "chat_template": text}).encode()).hexdigest()
    place = hashlib.sha256(f"{folder} {combined} {source}".encode()).hexdigest()[:16]
    target = user_cache.folder() / "models" / place
    if not target.is_dir():
        _link(folder, text, source, target)
    return target, combined


def _chosen(folder: Path, name: str) -> str:
    found = templates(folder)
    if name in found:
        return found[name]
    others = f" called {name!r}; it has {', '.join(sorted(found))}" if found else ""
    raise ModelError(
        f"the model brings no chat template{others}",
        file=str(folder),
        hint="name one of these, or a file with a slash, as in ./template.jinja; plain.jinja is shipped",
        rule="template-unknown-name",
    )


def _named(said: Any) -> dict[str, str]:
    if said is None:
        return {}
    if isinstance(said, str):
        return {"default": said}
    if isinstance(said, list) and all(isinstance(one, dict) for one in said):
        said = {one.get("name"): one.get("template") for one in said}
    if isinstance(said, dict) and all(isinstance(part, str) for pair in said.items() for part in pair):
        return dict(said)
    raise ModelError(
        "chat_template is neither a text nor a list of names and templates",
        hint=f"put the template into {FILE} beside it, and take chat_template out",
        rule="template-form",
    )


def _text(file: Path) -> str:
    if not json_files.there(file):
        raise ModelError(
            "there is no such chat template",
            file=str(file),
            hint="put the file there, or change model.chat_template",
            rule="template-no-file",
        )
    json_files.check_no_pointer(file)
    with in_file(file):
        if file.stat().st_size > _LARGEST:
            problem = f"the template has {file.stat().st_size:,} bytes; more than {_LARGEST:,} are not read"
            raise ModelError(problem, hint="name the file of a chat template", rule="template-size")
        try:
            text = file.read_text("utf-8")
        except UnicodeDecodeError:
            raise ModelError("the template is no UTF-8", hint="save it as UTF-8", rule="template-encoding") from None
        if text.startswith("\ufeff"):
            problem = "the template begins with a byte-order mark, with which every prompt would begin"
            raise ModelError(problem, hint=json_files.WITHOUT_MARK, rule="template-encoding")
        return text


def _link(folder: Path, text: str, source: Path | None, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as made:
        part = Path(made) / "model"
        part.mkdir()
        for path in folder.iterdir():
            if path.name not in _HOLD_TEMPLATES:
                (part / path.name).symlink_to(path.absolute())
        settings = json_files.read(folder / "tokenizer_config.json")
        settings.pop("chat_template", None)
        (part / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
        (part / FILE).write_text(text, encoding="utf-8")
        if source:
            (part / _SOURCE).write_text(str(source), encoding="utf-8")
        try:
            part.rename(target)
        except OSError:  # another command was faster
            if not target.is_dir():
                raise
