# SPDX-License-Identifier: Apache-2.0
"""What the commands of `reco` share: options, output, errors as one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import reco

FOLDER = click.Path(path_type=Path)
FILE = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress bar.")


class Group(click.Group):
    """Turns a reco.Error into one line and exit code 1; Ctrl-C into exit code 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except RuntimeError as error:
            from reco import Error

            if not isinstance(error, Error):
                raise
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a result as JSON or as aligned lines."""
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    width = max(map(len, result), default=0)
    for name, value in result.items():
        click.echo(f"{name:<{width}}  {json.dumps(value) if isinstance(value, dict | list) else value}")


def flat(result: dict[str, Any]) -> dict[str, Any]:
    """Give what lies inside a dict a line of its own: {"a": {"b": 1}} becomes {"a.b": 1}."""
    lines: dict[str, Any] = {}
    for name, value in result.items():
        lines |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return lines


def open_model(model: Path, memory_path: Path, fusion: Path | None, k: int | None) -> reco.Model:
    """A model with its fusion; without one, a training-free mean."""
    import reco

    clip = reco.Clip.load(model)
    store = reco.Memory.open(memory_path, read_only=True)
    return reco.Model(clip, store, reco.Fusion.load(fusion) if fusion else reco.Fusion.mean(clip.dim), k=k)


def model_options(command: Any) -> Any:
    """Add --model, --memory, --fusion and --k to a command."""
    for option in (
        click.option("--k", type=int, help="Neighbours a query; as many as the fusion was made for without it."),
        click.option("--fusion", type=FILE, help="Trained fusion; a training-free mean without it."),
        click.option("--memory", "memory_path", type=FOLDER, required=True),
        click.option("--model", type=FOLDER, required=True, help="CLIP folder."),
    ):
        command = option(command)
    return command
