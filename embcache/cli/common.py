"""What the commands share: their options, their exit codes, and how they speak.

Results go to standard output, everything else in single lines to standard error. No line holds a text or a key.
"""

import functools
import inspect
import signal
import sys
import warnings
from contextlib import suppress
from enum import IntEnum, StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from embcache.errors import ConfigError, EmbcacheError, EmbcacheWarning, StoreError
from embcache.show import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

JSON_VERSION = 1
"""The version of what ``--json`` prints, of all commands; raised when a name goes or changes its meaning."""


class Code(IntEnum):
    """Exit codes, the same for all commands."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    STORE = 3
    # A signal's is 128 and its number: 130 for Ctrl-C, 143 for SIGTERM.


INTERRUPTED = 128 + signal.SIGINT
EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 cache unreadable, 130 interrupted, 143 terminated."


class ProviderName(StrEnum):
    """Providers that can be named on the command line."""

    NOVITA = "novita"
    LOCAL = "local"


CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir", metavar="DIR", help="The cache folder. Default: EMBCACHE_DIR, else the user's folder for caches."
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, of the shape that docs/json-output.md tells.")
]
ProviderChoice = Annotated[
    ProviderName | None,
    typer.Option("--provider", help="Who computes vectors. Default: EMBCACHE_PROVIDER, else the API."),
]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", metavar="URL", help="The server to ask. Default: EMBCACHE_BASE_URL, else Novita's."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on standard error but warnings and errors.")]


class _Voice:
    """Whether the command speaks of more than warnings and errors."""

    is_quiet = False


class Fault(Exception):
    """Ends a command with one line for the user and an exit code."""

    def __init__(self, message: str, code: Code = Code.FAILED) -> None:
        """Tell ``message``, exit with ``code``."""
        self.code = code
        super().__init__(message)


class Stopped(SystemExit):
    """A signal asked the command to end; passes through whatever only handles errors."""


def with_quiet(command: "Callable[..., None]") -> "Callable[..., None]":
    """Return ``command`` with the option that all have: ``--quiet``, which what it says with ``say`` obeys."""

    @functools.wraps(command)
    def spoken(*arguments: object, quiet: bool, **options: object) -> None:
        _Voice.is_quiet = quiet
        command(*arguments, **options)

    # What typer makes options of; it reads both. Evaluated here, where the names of the command's module are known.
    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)
    parameters = [*signature.parameters.values(), option]
    told: Any = spoken
    told.__signature__ = signature.replace(parameters=parameters)
    told.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spoken


def is_quiet() -> bool:
    """Return whether ``--quiet`` was given."""
    return _Voice.is_quiet


def run(app: typer.Typer) -> NoReturn:
    """Run ``app`` and exit with its code; what goes wrong is one line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` and a shell's `&` want it
            signal.signal(number, _stop)
    warnings.showwarning = _show_warning
    try:
        app(prog_name="embcache")
    except Exception as error:
        code = code_of(error)
        if code is None:  # a fault of ours
            raise
        say(str(error), always=True)
        sys.exit(code)
    sys.exit(Code.DONE)


def code_of(error: Exception) -> Code | None:
    """Return the exit code for an error; None for one that nobody foresaw."""
    if isinstance(error, Fault):
        return error.code
    if isinstance(error, ConfigError):
        return Code.USAGE
    if isinstance(error, StoreError):
        return Code.STORE
    return Code.FAILED if isinstance(error, (EmbcacheError, OSError)) else None


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    raise Stopped(128 + number)


_show_other_warning = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
    if issubclass(category, EmbcacheWarning):
        say(f"warning: {message}", always=True)
    else:
        _show_other_warning(message, category, *where, **more)  # type: ignore[arg-type]  # passed on as it came


def say(message: str, *, always: bool = False) -> None:
    """Write one line to standard error; what could steer a terminal is left out.

    Args:
        message: the line.
        always: whether it is a warning or an error, which ``--quiet`` does not silence.
    """
    if _Voice.is_quiet and not always:
        return
    with suppress(AttributeError, OSError):  # nobody listens
        sys.stderr.write(f"embcache: {printable(message)}\n")
        sys.stderr.flush()


def write_out(data: bytes) -> None:
    """Write to standard output; where its reader has left, end the command without a word.

    Raises:
        Fault: it cannot be written.
    """
    if not sys.stdout:  # None where it is closed, whatever its type says
        raise Fault("standard output: closed")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise typer.Exit(Code.FAILED) from None
    except OSError as error:
        raise Fault(f"standard output: {error.strerror or 'cannot be written'}") from error


def write_json(told: "Mapping[str, object]") -> None:
    """Write what ``--json`` asks for to standard output: one object, which begins with its version.

    Raises:
        Fault: it cannot be written.
    """
    import json

    write_out(json.dumps({"version": JSON_VERSION, **told}, indent=2).encode() + b"\n")


def many(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: ``1 hit``, ``2,000 hits``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
