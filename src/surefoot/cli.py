"""The command line: commands, errors as sentences, exit statuses."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from surefoot.commands import demo, evaluate, gradients, train
from surefoot.commands.options import DONE, FAILED, WRONG_INPUT, hyphenated
from surefoot.errors import RunError, UsageError

STARTED = time.time()
ENGINE = ("jax", "gymnasium", "optax", "flax")

HELP = """usage: surefoot COMMAND ...

Policy optimisation that never takes a step it cannot trust.

commands:
  train ALGORITHM --env ID   train a policy in a Gymnasium environment
  evaluate RUN               run a trained policy for whole episodes
  gradients                  the policy gradient's weights on enumerable problems: exact bias and variance
  demo                       train PPO on CartPole-v1 and show that it learns

`surefoot COMMAND --help` lists a command's options.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit status: 0 done, 2 the input is wrong (one sentence on standard error), 1 anything else.
    """
    arguments = [hyphenated(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except UsageError as error:
        print(f"surefoot: {error}", file=sys.stderr)
        return WRONG_INPUT
    except RunError as error:
        print(f"surefoot: {error}", file=sys.stderr)
        return FAILED
    except ModuleNotFoundError as error:
        if error.name not in ENGINE:
            raise
        print(f"surefoot: this needs {error.name}; install it with: pip install 'surefoot[control]'", file=sys.stderr)
        return WRONG_INPUT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read has gone; nobody is there to tell
        return FAILED
    except OSError as error:
        print(f"surefoot: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("surefoot: stopped at once; what was saved before is kept", file=sys.stderr)
        return FAILED


def entry() -> None:
    """The console script."""
    sys.exit(main())


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return DONE if arguments else WRONG_INPUT
    if arguments[0] == "--version":
        from surefoot import __version__

        print(__version__)
        return DONE
    command, rest = arguments[0], arguments[1:]
    if command == "train":
        return train.run(rest, started=STARTED)
    if command == "evaluate":
        return evaluate.run(rest)
    if command == "gradients":
        return gradients.run(rest)
    if command == "demo":
        return demo.run(rest, started=STARTED)
    raise UsageError(f"there is no command {command!r}; there are train, evaluate, gradients and demo")
