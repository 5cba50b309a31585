# SPDX-License-Identifier: Apache-2.0
"""Make a Milvus collection and fill it with what `reco embed` wrote; started again, it goes on.

python examples/cluster/fill.py http://10.0.0.1:19530 birds /mnt/share/embeddings --model /mnt/share/clip --index HNSW
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

import reco
from reco.embedding_source import folder_shards

PARAMS: dict[str, dict[str, Any]] = {
    "FLAT": {},
    "HNSW": {"M": 32, "efConstruction": 200},
    "IVF_FLAT": {"nlist": 4096},
    "IVF_SQ8": {"nlist": 4096},
    "DISKANN": {},
}


@click.command()
@click.argument("uri")
@click.argument("collection")
@click.argument("embeddings", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--model", required=True, type=click.Path(path_type=Path), help="CLIP folder that made the embeddings.")
@click.option("--index", type=click.Choice(list(PARAMS)), default="HNSW", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True)
@click.option("--token", default="", help="user:password, or an API key.")
def main(
    uri: str,
    collection: str,
    embeddings: tuple[Path, ...],
    model: Path,
    index: str,
    dtype: Literal["float32", "float16"],
    token: str,
) -> None:
    """Fill COLLECTION of the server at URI with the EMBEDDINGS of some folders."""
    encoder = reco.Clip.load(model).fingerprint
    try:
        memory = reco.MilvusMemory(uri, collection, encoder=encoder, token=token)
    except reco.Error as error:
        if "is not there" not in str(error):
            raise click.ClickException(str(error)) from None
        dim = next(folder_shards(embeddings[0])).images.shape[1]
        memory = reco.MilvusMemory.create(
            uri, collection, dim, encoder, index=index, index_params=PARAMS[index], dtype=dtype, token=token
        )
    pairs = memory.import_embeddings(*embeddings)
    click.echo(f"{memory}: {pairs} pairs imported, {len(memory)} in all")


if __name__ == "__main__":
    main()
