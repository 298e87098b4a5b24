"""The model of a run, where the run is named in place of its model."""

from __future__ import annotations

from pathlib import Path

from surefoot.errors import require
from surefoot.runs.directory import CONFIGURATION_FILE, MODEL_FOLDER, read_json


def model_of(name: str) -> str:
    """The model's folder, where ``name`` is the folder of a run of ``surefoot align``; else ``name`` itself.

    Raises:
        UsageError: it is a run without a model.
    """
    folder = Path(name).expanduser()
    configuration = folder / CONFIGURATION_FILE
    if not configuration.is_file() or "method" not in read_json(configuration):  # a model's config.json has no method
        return name
    model = folder / MODEL_FOLDER
    require(model.is_dir(), f"{name} is a run that holds no model: it was stopped before its first update was saved")
    return str(model)
