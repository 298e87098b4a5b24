"""The command line: commands, errors as sentences, exit statuses."""

from __future__ import annotations

import os
import sys
import time

# Nothing here takes time to import, so that Ctrl-C finds main at work.
from surefoot.errors import DONE, FAILED, STOPPED, WRONG_INPUT, RunError, UsageError, on_one_line

TYPE_CHECKING = False  # typing's own, without its import
if TYPE_CHECKING:
    from collections.abc import Sequence

STARTED = time.time()
EXTRAS = dict.fromkeys(("jax", "gymnasium", "optax", "flax"), "control")
EXTRAS |= dict.fromkeys(("torch", "transformers", "tokenizers", "peft", "datasets", "pyarrow"), "alignment")
EXTRAS |= dict.fromkeys(("onnx", "onnxruntime"), "onnx")
"""Which extra brings which library."""
COMMANDS = ("train", "align", "resume", "evaluate", "export", "inspect", "generate", "task", "gradients", "frontier", "demo")
TIMED = ("train", "align", "resume", "demo")
"""Commands that say how long they took, from the process's start."""

HELP = """usage: surefoot COMMAND ...

Policy optimisation that never takes a step it cannot trust.

commands:
  train ALGORITHM --env ID   train a policy in a Gymnasium environment
  align METHOD --model MODEL --data DATA
                             train a language model: sft, reward, dpo, ppo
  resume RUN                 go on with a run that was stopped (--checkpoint-every)
  evaluate RUN               run a trained policy for whole episodes, or score held-out preferences
  export RUN                 write a trained policy as an ONNX file, which needs neither surefoot nor JAX
  inspect DATA --model MODEL show prompts or preference data token by token
  generate MODEL --data DATA sample answers to prompts, for reading
  task grammar --out FOLDER  write a generated language task: data, and a tiny model
  gradients                  the policy gradient's weights on enumerable problems: exact bias and variance
  frontier                   PPO, GRPO, RLOO and DPO against the exact optimum of enumerable tasks
  demo                       the whole road in three minutes: PPO on CartPole; SFT, reward model, PPO and DPO

`surefoot COMMAND --help` lists a command's options.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit status: 0 done, 2 the input is wrong (one sentence on standard error), 1 anything else.
    """
    try:
        from surefoot.runs.stopping import ended_by_signals

        with ended_by_signals():
            status = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return status
    except UsageError as error:
        print(on_one_line(f"surefoot: {error}"), file=sys.stderr)
        return WRONG_INPUT
    except RunError as error:
        print(on_one_line(f"surefoot: {error}"), file=sys.stderr)
        return FAILED
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in EXTRAS:
            raise
        print(f"surefoot: this needs {name}; install it with: pip install 'surefoot[{EXTRAS[name]}]'", file=sys.stderr)
        return WRONG_INPUT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read has gone; nobody is there to tell
        return FAILED
    except OSError as error:
        print(on_one_line(f"surefoot: {error.filename or 'output'}: {error.strerror or error}"), file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
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
    command, rest = arguments[0], [_hyphenated(argument) for argument in arguments[1:]]
    if command not in COMMANDS:
        raise UsageError(f"there is no command {command!r}; there are {', '.join(COMMANDS[:-1])} and {COMMANDS[-1]}")
    import importlib

    module = importlib.import_module(f"surefoot.commands.{command}")
    status: int = module.run(rest, started=STARTED) if command in TIMED else module.run(rest)
    return status


def _hyphenated(argument: str) -> str:
    """An option's name with hyphens, however it was spelt: the parser takes both, and everything else reads one."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument
