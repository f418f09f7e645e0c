"""The templates of the reports."""

from __future__ import annotations

import jinja2


def open_templates(*, html: bool) -> jinja2.Environment:
    """The environment of reports/templates: for HTML, which escapes whatever is put in, or for Markdown.

    Markdown has no escaping that jinja2 knows: text of the user's goes through ``markdown.escape``.
    """
    return jinja2.Environment(
        loader=jinja2.PackageLoader("alphatune", "reports/templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=html,
    )
