"""The few ways mlprod ends other than well, each with the exit code that a launcher acts on.

Promise: 2 means the user's input, found before the first step; 1 means it failed while running; 75 means start it again.
Messages are one line: the field or file, the value, the rule, the way out.
"""

import difflib
import re
from collections.abc import Iterable


class MlprodError(Exception):
    """Base of every error that ends a verb; `exit_code` is the process's."""

    exit_code = 1


class UserError(MlprodError):
    """The user's input is wrong and was found before the first step."""

    exit_code = 2


class ConfigError(UserError):
    """A config field is unknown, ill-typed or out of range, or two fields contradict each other."""


class DataError(UserError):
    """A source, a row or a dataset is not what the config says."""


class QuotingError(DataError):
    """A DataError that quotes what a database, a library or the user's code says: a value of any column may stand in it."""

    def __init__(self, told: str, without: str) -> None:
        """`without`: what is told in its place where a column is sensitive."""
        super().__init__(told, without)

    def __str__(self) -> str:
        """Returns the whole text."""
        return str(self.args[0])

    @property
    def without(self) -> str:
        """The text without what may be a value."""
        return str(self.args[1])


class LayoutError(UserError):
    """A mesh does not fit the devices, or a parameter does not fit its table of dims."""


class WorkdirError(UserError):
    """The run's folder cannot be written, is held by a living run, or belongs to another run."""


class MachineError(UserError):
    """This machine lacks what a run needs: a package, a device, space on a disk."""


class BuildError(MlprodError):
    """A build of a dataset failed while it ran: a full disk, a source that went away. What was finished is kept."""


class DamageError(MlprodError):
    """A dataset that was read again is not what was written."""


class ConnectionLost(MlprodError):
    """A database went away while it was read, and stayed away. What was finished is kept."""

    exit_code = 75


class ClusterLost(MlprodError):
    """The cluster that does a build's tasks went away, or has no workers. What was finished is kept."""

    exit_code = 75


class CheckpointError(MlprodError):
    """A save failed, or no saved step can be restored."""


class RestoreError(CheckpointError, UserError):
    """What was saved is damaged, was made to do harm, or is a newer program's; found before the first step."""

    exit_code = 2


class TrainingError(MlprodError):
    """The run itself went wrong (a NaN loss, a file that changed while being read)."""


class PeerLost(MlprodError):
    """Another process of the run did not come, or is gone; starting again waits for it."""

    exit_code = 75


class Preempted(MlprodError):
    """The run was asked to stop and saved its state; starting it again goes on."""

    exit_code = 75


def exit_code(error: BaseException | None) -> int:
    """Returns the exit code of a run that ends with an error, or well; after Ctrl-C as well it is to be started again."""
    if error is None:
        return 0
    if isinstance(error, MlprodError):
        return error.exit_code
    return Preempted.exit_code if isinstance(error, KeyboardInterrupt) else MlprodError.exit_code


def one_line(text: str) -> str:
    """Returns text on one line, with what a terminal would act on as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))


class Wordless(Exception):
    """Stands in a traceback for an exception whose text may hold what is not to be seen: its type, and where it came from."""


def wordless(error: BaseException | None, why: str) -> Wordless | None:
    """Returns what stands for an exception, and for those that led to it, in a traceback; `why`: in place of their texts."""
    if error is None:
        return None
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    where = [line.strip() for line in str(error).splitlines() if _FRAME.match(line)]  # what another process says of itself
    text = "\n".join([f"{type(error).__qualname__} ({why})", *where])
    twin = Wordless(text).with_traceback(error.__traceback__)
    twin.__cause__ = wordless(before, why)
    return twin


_FRAME = re.compile(r'\s+File "[^"]+", line \d+, in \w+$')


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the known name most like `name`, or the known names when none is."""
    return like(name, known) or f"; known: {', '.join(sorted(known)) or 'none'}"


def like(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the known name most like `name`; "" where none is."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
