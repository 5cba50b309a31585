# SPDX-License-Identifier: Apache-2.0
"""Measures the oracle, the same CLIP trained on unseen concepts too, and stores its figures for the quickstart's table.

The oracle's weights are not shipped; train_clip.py --oracle makes them.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

import reco
from quickstart import ORACLE
from tasks import DATA, Queries, System, load, measure, same

COMMANDS = (
    "python examples/icons/build.py --world world",
    "python examples/icons/train_clip.py --world world --bpe open_clip_torch-*.whl --oracle --out oracle",
    "python examples/icons/oracle.py oracle",
)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
def main(model: Path) -> None:
    """Measure MODEL on the queries, without any memory."""
    clip = reco.Clip.load(model)
    queries = Queries.load(clip, load(clip, "queries", DATA))
    records = [record.as_dict() for record in measure(System("oracle", same, same), queries)]
    training = json.loads((model / "training.json").read_text("utf-8"))
    facts = {"commands": COMMANDS, "fingerprint": clip.fingerprint, "training": training, "records": records}
    ORACLE.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    click.echo(f"{ORACLE}: {len(records)} records")


if __name__ == "__main__":
    main()
