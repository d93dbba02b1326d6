"""Asks before something is removed: on a terminal, and nowhere else."""

import sys

from embcache.cli.common import Code, Fault

ASK = "embcache: {question} [y/N] "


def check_can_ask(*, yes: bool) -> None:
    """See to it that somebody can be asked, unless ``yes`` was said.

    Raises:
        Fault: nobody can.
    """
    if not yes and not (sys.stdin and sys.stderr and sys.stdin.isatty() and sys.stderr.isatty()):
        raise Fault("this removes what was paid for, and there is no terminal to ask at; add --yes", Code.USAGE)


def confirm(question: str, *, yes: bool) -> None:
    """Return if ``question`` is answered with yes, or ``yes`` was said.

    Raises:
        Fault: it was answered otherwise.
    """
    if yes:
        return
    sys.stderr.write(ASK.format(question=question))
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Fault("nothing was removed")
