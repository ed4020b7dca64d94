"""Pages from templates, put in place whole: every value is escaped, and a name that a template misses is an error."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from normkit.errors import InputError


def render(template: Path, **values: object) -> str:
    """The page as text; the same values give the same text."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(values)


def write(path: Path, content: str | bytes) -> None:
    """Write a file; whatever stood at `path` is replaced whole, or not at all.

    Raises:
        InputError: a path that cannot be written.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        aside.write_bytes(content if isinstance(content, bytes) else content.encode())
        aside.replace(path)
    except OSError as failure:
        aside.unlink(missing_ok=True)
        raise InputError(f"{path}: {failure.strerror or failure}") from failure
