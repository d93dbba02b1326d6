"""The command line: words in, words out. One command a file; what is heavy is imported inside the command."""

from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from embcache._version import __version__
from embcache.cli.clear import clear
from embcache.cli.common import EXIT_CODES, run, with_quiet
from embcache.cli.doctor import doctor
from embcache.cli.embed import embed
from embcache.cli.export import export
from embcache.cli.import_ import import_
from embcache.cli.info import info
from embcache.cli.plan import plan
from embcache.cli.prune import prune
from embcache.cli.stats import stats
from embcache.cli.verify import verify

# Without markup, help and usage errors are plain lines: quick to show (rich is not loaded), and the same in every
# terminal, pipe and document. Pretty tracebacks show the values of variables, and so texts and keys: never.
app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS: Mapping[str, Callable[..., None]] = {
    "embed": embed,
    "plan": plan,
    "stats": stats,
    "info": info,
    "export": export,
    "import": import_,
    "prune": prune,
    "clear": clear,
    "verify": verify,
    "doctor": doctor,
}
for name, command in COMMANDS.items():
    app.command(name, epilog=EXIT_CODES)(with_quiet(command))


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer's own signature of a callback
    if wanted:
        typer.echo(f"embcache {__version__}")
        raise typer.Exit


@app.callback()
def embcache(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A cache for text embeddings: every text is bought once."""


def main() -> None:
    """Run the command line and exit with its code: the console script ``embcache``."""
    run(app)
