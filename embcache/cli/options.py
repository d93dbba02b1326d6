"""The options that name the texts to embed, and the model: the same for all commands about embedding."""

from typing import Annotated

import typer

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...", help=".txt (a text a line), .jsonl, .csv, .parquet, or - for lines of standard input."
    ),
]
Field = Annotated[
    str,
    typer.Option("--field", metavar="NAME", help="The field (.jsonl) or column (.csv, .parquet) that holds the text."),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="The model to ask. Default: baai/bge-m3, or the local one."),
]
