# SPDX-License-Identifier: Apache-2.0
"""HTML from the templates of the package; all values are escaped."""

from __future__ import annotations

from typing import Any

__all__ = ["render"]


def render(template: str, **values: Any) -> str:
    """A template of reco/templates with its values filled in."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("reco"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**values)
