"""The errors that surefoot raises on purpose, each of one sentence that names what was wrong and what would be
right, and the exit statuses that they end in.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own, without its import: the command line begins with this file
if TYPE_CHECKING:
    from surefoot.control.environments.workers.failures import Failure


LONGEST_QUOTATION = 300
"""Characters of another library's error that a sentence quotes."""


DONE, FAILED, WRONG_INPUT = 0, 1, 2
"""Exit statuses of the command line."""
STOPPED = "surefoot: stopped at once; what was saved before is kept"
"""What Ctrl-C ends with, where no run is going on that could finish its iteration."""


class UsageError(Exception):
    """What the user gave cannot be used. On the command line: the sentence, no traceback, exit status 2."""


class RunError(RuntimeError):
    """The run cannot go on: an environment failed, a disk is full. On the command line: the sentence, exit status
    1.
    """


class EnvironmentFault(RunError):
    """An environment raised, or returned a value that is not a finite number.

    Args:
        sentence: which, and what it did.
        failure: what is left of it, where it ran in a worker process.
    """

    def __init__(self, sentence: str, *, failure: Failure | None = None) -> None:
        super().__init__(sentence)
        self.failure = failure


class Caution(str):
    """A sentence about something that may be wrong: it is printed under --quiet too, which leaves out progress and what is only good
    to know.
    """


def shown(sentence: str, *, quiet: bool) -> bool:
    """Whether a sentence is printed."""
    return not quiet or isinstance(sentence, Caution)


def printable(text: str) -> str:
    """The text with an escape in place of what would move a terminal's cursor, change its colours or hide what stands there."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def on_one_line(text: str) -> str:
    """A sentence as it is printed: on one line, and whatever it quotes unable to steer the terminal."""
    return printable(" ".join(line.strip() for line in text.splitlines() if line.strip()) if "\n" in text else text)


def what_it_says(error: BaseException | None) -> str:
    """Another library's error as part of a sentence: what it says, on one line, as far as a sentence can hold it."""
    words = " ".join(str(error or "").split())
    if len(words) > LONGEST_QUOTATION:
        words = words[:LONGEST_QUOTATION].rpartition(" ")[0] + " …"
    return words.rstrip(".: ") or type(error).__name__


def words_of(error: BaseException) -> str:
    """What an exception says, on one line after a colon; nothing where it says nothing, as many that are raised by libraries do."""
    words = " ".join(str(error).split())
    return words and f": {words}"


def require(condition: bool, sentence: str) -> None:
    """Raise :class:`UsageError` with the sentence unless the condition holds."""
    if not condition:
        raise UsageError(sentence)
