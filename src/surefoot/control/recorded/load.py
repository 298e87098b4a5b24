"""Read a Minari data set into padded arrays, checked, in the units of a policy."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surefoot.control.policies.spaces import ActionSpace, Spaces, describe_spaces
from surefoot.errors import Caution, UsageError
from surefoot.runs.directory import read_json

LOG_PROBABILITY = "log_probability"
OWN_ACTION = "policy_action"
"""Infos that ``surefoot evaluate RUN --record`` writes beside each action."""
LARGEST_RATIO = 1100
"""HDF5 and Arrow compress with deflate and the like, which make of no bytes more than so many."""
DEEPEST = 16
"""Groups in groups: an episode's infos may be nested."""
METADATA_FILE = "metadata.json"
DATA_FOLDER = "data"


class RecordedData(NamedTuple):
    """Whole episodes side by side, padded with zeros behind their ends."""

    observations: np.ndarray
    """As the environment gave them, shape (time + 1, episodes, observation size); row t + 1 follows the action of t."""
    actions: np.ndarray
    """In the policy's own units, shape (time, episodes, …): a Box neither scaled nor clipped, choices counted from 0."""
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    """Which slots are steps, shape (time, episodes), as the three before."""
    log_probabilities: np.ndarray | None
    """Log μ(a|s) of the policy that acted, in nats, (time, episodes); None where the data do not say."""
    at_bound: np.ndarray | None
    """For a Box whose actions were read back from the environment's: −1, 0 or 1 for at the lower bound, inside, at the
    upper bound, shape of ``actions``. None where the actions are as they were sampled."""
    env: str | None
    """The environment that the data are of, if they say."""
    dataset: str
    """The data set's name for itself."""
    notices: tuple[str, ...]

    @property
    def episodes(self) -> int:
        """How many."""
        return self.rewards.shape[1]

    @property
    def steps(self) -> int:
        """Of all episodes together."""
        return int(self.valid.sum())


def require_minari() -> None:
    """Raise UsageError where Minari or its file format is not installed."""
    for module, package in (("minari", "minari"), ("h5py", "h5py"), ("PIL", "pillow")):  # Minari does not declare Pillow
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"recorded data needs {package}; install it with: pip install 'surefoot[data]'")


def load_recorded(file: str | Path, spaces: Spaces | None = None) -> RecordedData:
    """Read a Minari data set.

    Args:
        file: its folder, the ``data`` folder inside, or a name that Minari knows locally; nothing is downloaded.
        spaces: of the policy that the data are for; those of the data set by default.

    Raises:
        UsageError: Minari is not installed, there is no data set, it is damaged or empty, holds numbers that are not
            finite, or has other spaces than the policy.
    """
    require_minari()
    folder = find_dataset(file)
    metadata = _read_metadata(folder)
    from minari import MinariDataset

    try:
        dataset = MinariDataset(folder)
        described = _describe(dataset, file)
        episodes = [_as_dict(episode) for episode in dataset.iterate_episodes()]
    except UsageError:
        raise
    except ImportError as error:
        raise UsageError(f"{file} is stored as {metadata.get('data_format')}, which needs another package: {error}") from error
    except Exception as error:  # whatever a damaged file makes of h5py, Arrow, JSON or Minari's assertions
        raise UsageError(
            f"{file} cannot be read as a Minari data set ({type(error).__name__}: {error}); record it or download it again"
        ) from error
    if spaces is not None:
        _check_spaces(file, described, spaces)
    if not episodes:
        raise UsageError(f"{file} holds no episodes; record it again")
    specification = dataset.env_spec
    env = specification.id if specification is not None else (metadata.get("surefoot") or {}).get("env")
    return _padded(file, episodes, spaces or described, env=env, dataset=dataset.id)


def recorded_spaces(file: str | Path) -> Spaces:
    """The spaces that a Minari data set says it has.

    Raises:
        UsageError: as :func:`load_recorded`.
    """
    require_minari()
    folder = find_dataset(file)
    _read_metadata(folder)
    from minari import MinariDataset

    return _describe(MinariDataset(folder), file)


def find_dataset(file: str | Path) -> Path:
    """The folder in which the data set's ``metadata.json`` lies.

    Raises:
        UsageError: there is none; the sentence says what there is.
    """
    path = Path(file)
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    for folder in (path, path / DATA_FOLDER, root / path / DATA_FOLDER):
        if (folder / METADATA_FILE).is_file():
            return folder
    if path.is_file():
        raise UsageError(f"{path} is a file, and a Minari data set is a folder; give the one that holds data/{METADATA_FILE}")
    if path.is_dir():
        raise UsageError(f"{path} holds no Minari data set: there is no {METADATA_FILE} in it, nor in {path / DATA_FOLDER}")
    known = sorted(str(p.parent.parent.relative_to(root)) for p in root.glob(f"**/{DATA_FOLDER}/{METADATA_FILE}"))
    raise UsageError(
        f"there is no data set {file}: neither a folder, nor a name that Minari knows in {root}, where there is"
        f" {', '.join(known) or 'none'}; `minari download NAME` fetches a published one"
    )


def _read_metadata(folder: Path) -> dict[str, Any]:
    """Check before Minari reads: without spaces it would run the environment that the file names, a stranger's choice."""
    path = folder / METADATA_FILE
    metadata = read_json(path)
    missing = [name for name in ("observation_space", "action_space", "data_format") if not isinstance(metadata.get(name), str)]
    if missing:
        raise UsageError(f"{path} does not say {' and '.join(missing)}; load the data set in Minari and save it again")
    counts = {name: metadata.get(name) for name in ("total_episodes", "total_steps")}
    for name, count in counts.items():
        if type(count) is not int or not 0 <= count < 1 << 40:
            raise UsageError(
                f"{path} says {name} {count}, which is no number of them; load the data set in Minari and save it again"
            )
    _check_contents(folder, int(metadata["total_episodes"]))
    return metadata


def _check_contents(folder: Path, episodes: int) -> None:
    """Refuse HDF5 files whose arrays lie in other files, or are larger than all that is there, before memory is taken for them."""
    import h5py

    largest = LARGEST_RATIO * sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if episodes > largest:
        raise UsageError(f"{folder} says that it holds {episodes:,} episodes, and has no room for so many")
    for path in folder.glob("*.hdf5"):
        held = 0
        try:
            with h5py.File(path, "r") as file:
                waiting: list[tuple[Any, int]] = [(file, 0)]
                while waiting:
                    group, depth = waiting.pop()
                    for name in group:
                        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                            raise UsageError(f"{path} holds a link, {name!r}, to somewhere else; record the data again")
                        item = group[name]
                        if isinstance(item, h5py.Group):
                            if depth == DEEPEST:
                                raise UsageError(f"{path} is nested deeper than any recorded episode")
                            waiting.append((item, depth + 1))
                        elif item.is_virtual or item.external:
                            raise UsageError(f"{path} keeps {name!r} in another file; record the data again")
                        else:
                            held += item.nbytes
                        if held > largest:
                            raise UsageError(f"{path} says that it holds {held:,} bytes or more, and has no room for so many")
        except UsageError:
            raise
        except Exception as error:  # whatever a damaged file makes of h5py
            raise UsageError(
                f"{path} cannot be read as a Minari data set ({type(error).__name__}: {error}); record it or download it again"
            ) from error


def _describe(dataset: Any, file: str | Path) -> Spaces:
    from gymnasium.spaces import Box

    space = dataset.observation_space
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise UsageError(
            f"{file} has observations {space}, and only vectors are supported; record it again from an environment in"
            " gymnasium.wrappers.FlattenObservation"
        )
    return describe_spaces(space, dataset.action_space, name=str(file))


def _check_spaces(file: str | Path, data: Spaces, policy: Spaces) -> None:
    if data.observation_size != policy.observation_size:
        raise UsageError(
            f"{file} has observations of size {data.observation_size}, but the policy takes {policy.observation_size}"
        )
    mine, theirs = policy.action, data.action
    same = (mine.kind, mine.sizes, mine.start) == (theirs.kind, theirs.sizes, theirs.start)
    close = len(mine.low) == len(theirs.low) and np.allclose(mine.low, theirs.low) and np.allclose(mine.high, theirs.high)
    if not (same and close):
        raise UsageError(f"{file} has actions {_in_words(theirs)}, but the policy's are {_in_words(mine)}")


def _in_words(space: ActionSpace) -> str:
    bounds = f" between {list(space.low)} and {list(space.high)}" if space.kind == "box" else ""
    start = f" counted from {list(space.start)}" if any(space.start) else ""
    return f"{space.kind} {list(space.sizes)}{bounds}{start}"


def _as_dict(episode: Any) -> dict[str, Any]:
    infos = episode.infos if isinstance(episode.infos, dict) else {}
    columns = ("observations", "actions", "rewards", "terminations", "truncations")
    found = {name: np.array(getattr(episode, name)) for name in columns}  # copies: Arrow's arrays cannot be written to
    return found | {name: np.array(infos[name]) for name in (LOG_PROBABILITY, OWN_ACTION) if name in infos}


def _padded(file: str | Path, episodes: list[dict[str, Any]], spaces: Spaces, *, env: str | None, dataset: str) -> RecordedData:
    for i, episode in enumerate(episodes):
        _check_episode(f"{file}, episode {i}", episode, spaces)
    box, notices = spaces.action.kind == "box", []
    own = box and all(OWN_ACTION in episode for episode in episodes)
    scored = all(LOG_PROBABILITY in episode for episode in episodes)
    if scored and box and not own:
        scored = False
        notices.append(
            f"the data have {LOG_PROBABILITY} but no {OWN_ACTION}: which action the number is of is not known, and it is not used"
        )
    unfinished = sum(not (episode["terminations"][-1] or episode["truncations"][-1]) for episode in episodes)
    if unfinished:
        notices.append(f"{unfinished} of {len(episodes)} episodes stop without an end and are taken as truncated there")
        for episode in episodes:
            episode["truncations"][-1] |= not episode["terminations"][-1]
    at_bound = None
    if box and not own:
        bounds = [_bounds_met(episode["actions"], spaces.action) for episode in episodes]
        at_bound = _pad(bounds, extra=0)
    actions = [episode[OWN_ACTION][: len(episode["rewards"])] if own else spaces.action.from_environment(episode["actions"])
               for episode in episodes]  # fmt: skip
    return RecordedData(
        observations=_pad((episode["observations"] for episode in episodes), extra=1),
        actions=_pad(actions, extra=0),
        rewards=_pad((episode["rewards"].astype(np.float64) for episode in episodes), extra=0),
        terminated=_pad((episode["terminations"].astype(bool) for episode in episodes), extra=0),
        truncated=_pad((episode["truncations"].astype(bool) for episode in episodes), extra=0),
        valid=_pad((np.ones(len(episode["rewards"]), bool) for episode in episodes), extra=0),
        log_probabilities=_pad(
            (episode[LOG_PROBABILITY][: len(episode["rewards"])].astype(np.float64) for episode in episodes), extra=0
        )
        if scored
        else None,
        at_bound=at_bound,
        env=env,
        dataset=dataset,
        notices=tuple(map(Caution, notices)),
    )


def _check_episode(where: str, episode: dict[str, Any], spaces: Spaces) -> None:
    steps, action = len(episode["rewards"]), spaces.action
    expected: dict[str, list[tuple[int, ...]]] = {
        "observations": [(steps + 1, spaces.observation_size)],
        "actions": [(steps, *action.shape)],
        "rewards": [(steps,)],
        "terminations": [(steps,)],
        "truncations": [(steps,)],
        LOG_PROBABILITY: [(steps,), (steps + 1,)],
        OWN_ACTION: [(steps, *action.shape), (steps + 1, *action.shape)],
    }
    if steps == 0:
        raise UsageError(f"{where} has no steps; leave it out or record again")
    for name, values in episode.items():
        if values.shape not in expected[name]:
            raise UsageError(f"{where} is damaged: {name} have shape {values.shape}, where {expected[name][0]} belongs")
        if values.dtype.kind not in "biuf":
            raise UsageError(f"{where} is damaged: {name} are {values.dtype}, not numbers")
        if not np.isfinite(values).all():
            step = int(np.argwhere(~np.isfinite(values))[0][0])
            raise UsageError(f"{where} has {name} that are not finite at step {step}; leave the episode out or record again")
    ends = np.flatnonzero(episode["terminations"].astype(bool) | episode["truncations"].astype(bool))
    if len(ends) and ends[0] < steps - 1:
        raise UsageError(f"{where} goes on behind its end at step {ends[0]}; record each episode by itself")
    if action.kind != "box":
        own, choices = action.from_environment(episode["actions"]), action.sizes
        most = np.asarray(choices) if action.kind != "multibinary" else np.full(action.shape, 2)
        columns = own[:, None] if action.kind == "discrete" else own
        whole = np.array_equal(np.trunc(episode["actions"]), episode["actions"])
        if not whole or (columns < 0).any() or (columns >= most).any():
            raise UsageError(f"{where} has actions outside {_in_words(action)}")


def _bounds_met(actions: np.ndarray, space: ActionSpace) -> np.ndarray:
    low, high = np.asarray(space.low, np.float32), np.asarray(space.high, np.float32)
    actions = actions.astype(np.float32)
    return (actions >= high).astype(np.int8) - (actions <= low).astype(np.int8)


def _pad(columns: Iterable[np.ndarray], *, extra: int) -> np.ndarray:
    """Side by side along a new second axis, zeros behind the ends; ``extra`` rows more than there are steps."""
    columns = list(columns)
    out = np.zeros((max(map(len, columns)), len(columns), *columns[0].shape[1:]), columns[0].dtype)
    for i, column in enumerate(columns):
        out[: len(column), i] = column
    return out
