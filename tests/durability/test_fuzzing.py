"""Files with anything in them, through the command line: a sentence, or exactly what they say."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from surefoot.alignment.training import align
from surefoot.control.policies.policy import load_policy
from surefoot.control.recorded.record import record
from tests.alignment.models.tiny import save_language_model
from tests.durability.alignment.runs import material, settings
from tests.durability.fuzzing import damaged, fuzz, json_values, mutated, outcome
from tests.durability.test_safe_files import write_policy

ROWS = [
    {"prompt": "a b", "chosen": "good", "rejected": "bad b", "margin": 0.5},
    {"prompt": "a b", "completions": ["good", "bad", "c"], "ranks": [1, 2, 3]},
    {"prompt": "what", "responses": ["good", "bad"], "scores": [0.5, -1]},
    {"prompt": "what", "completions": ["good", "bad"], "pairs": [[0, 1]]},
    {"prompt": "yes ?", "completion": "no"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"chosen": "a b c", "rejected": "a b d"},
    {"prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "assistant", "content": "b"}], "rejected": "c"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_language_model(folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}")
    return folder


@pytest.fixture(autouse=True)
def one_tokenizer(model, monkeypatch):
    """Read once; tokenizers with anything in them are below."""
    from surefoot.alignment.data.tokenization import tokenizer

    load, kept = tokenizer.load_tokenizer, {}

    def loaded(name, **options):
        if str(name) != str(model):
            return load(name, **options)
        return kept.setdefault(name, load(name, **options)) if name not in kept else kept[name]

    monkeypatch.setattr(tokenizer, "load_tokenizer", loaded)


def check_inspected(capsys, file: Path, model: Path, *options: str, rows: int | None = None) -> None:
    """Every row is used, or counted under the reason why it is not."""
    status, printed = outcome(capsys, "inspect", file, "--model", model, "--json", *options)
    if status == 0:
        said = json.loads(printed)["description"]
        assert said["used"] + sum(said["unusable"].values()) == said["rows"]
        assert said["used"] > 0
        if rows is not None:
            assert said["rows"] == rows


purposes = st.sampled_from(
    [(), ("--purpose", "sft"), ("--purpose", "preference"), ("--purpose", "prompts"), ("--max-length", "4")]
)
some_rows = st.lists(st.sampled_from(ROWS).flatmap(mutated) | st.sampled_from(ROWS), min_size=1, max_size=4)


@fuzz(60)
@given(
    rows=some_rows,
    options=purposes,
    ending=st.sampled_from(["jsonl", "json", "jsonl.gz"]),
    lines=st.sampled_from(["\n", "\r\n"]),
)
def test_mutated_rows_of_json(rows, options, ending, lines, model, tmp_path, capsys):
    text = json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + lines for row in rows)
    content = ("\ufeff" + text if len(rows) == 2 else text).encode()
    (tmp_path / f"rows.{ending}").write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    check_inspected(capsys, tmp_path / f"rows.{ending}", model, *options, rows=len(rows))


@fuzz(40)
@given(data=st.data(), options=purposes, ending=st.sampled_from(["jsonl", "json", "jsonl.gz", "csv"]))
def test_damaged_bytes_of_texts(data, options, ending, model, tmp_path, capsys):
    content = "".join(
        json.dumps(row, ensure_ascii=False) + "\n" for row in [*ROWS, {"prompt": "é\u2028", "completion": "日本"}]
    ).encode()
    if ending == "csv":
        content = b'prompt,chosen,rejected\n"a, b",good,"bad\nb"\nwhat,yes,no\n'
    content = data.draw(damaged(gzip.compress(content) if ending.endswith("gz") else content) | st.binary(max_size=40))
    (tmp_path / f"rows.{ending}").write_bytes(content)
    check_inspected(capsys, tmp_path / f"rows.{ending}", model, *options)


cells = (
    st.text(max_size=6) | json_values.map(json.dumps) | st.sampled_from(["good", "bad", "nan", "1e999", "[1, 2]", '["a", "b"]'])
)


@fuzz(40)
@given(
    header=st.lists(
        st.sampled_from(["prompt", "chosen", "rejected", "completions", "ranks", "margin", " prompt", ""]),
        min_size=1,
        max_size=4,
    ),
    rows=st.lists(st.lists(cells, max_size=4), max_size=3),
    options=purposes,
)
def test_tables_of_any_cells(header, rows, options, model, tmp_path, capsys):
    out = io.StringIO()
    csv.writer(out).writerows([header, *rows])
    (tmp_path / "rows.csv").write_bytes(out.getvalue().encode(errors="surrogatepass"))
    check_inspected(capsys, tmp_path / "rows.csv", model, *options)


columns = st.sampled_from(
    [
        pa.array(["a", None]),
        pa.array([b"\xff", b"a"]).cast(pa.binary()),
        pa.array([1.5, float("nan")]),
        pa.array([10**18, None]),
        pa.array([["good", "bad"], []]),
        pa.array([[1, 2], None]),
        pa.array([[{"role": "user", "content": "a"}], [{"role": None, "content": "b"}]]),
        pa.array([{"a": 1}, None]),
        pa.array([2**62, -(2**62)], pa.timestamp("us", tz="Nowhere/City")),
        pa.array([2**62, 1], pa.duration("s")),
        pa.array([1, 2], pa.decimal128(38, 2)),
        pa.array(["good", "bad"]).dictionary_encode(),
        pa.nulls(2),
    ]
)
tables = st.dictionaries(
    st.sampled_from(
        ["prompt", "chosen", "rejected", "completion", "completions", "ranks", "scores", "messages", "margin", "\x1b[2J"]
    ),
    columns,
    min_size=1,
    max_size=5,
)


@fuzz(40)
@given(table=tables, data=st.data(), ending=st.sampled_from(["parquet", "arrow"]), options=purposes)
def test_tables_of_arrow(table, data, ending, options, model, tmp_path, capsys):
    made, out = pa.table(table), io.BytesIO()
    if ending == "parquet":
        parquet.write_table(made, out)
    else:
        with ipc.new_stream(out, made.schema) if data.draw(st.booleans()) else ipc.new_file(out, made.schema) as file:
            file.write_table(made)
    content = out.getvalue()
    whole = data.draw(st.booleans())
    (tmp_path / f"rows.{ending}").write_bytes(content if whole else data.draw(damaged(content)))
    check_inspected(capsys, tmp_path / f"rows.{ending}", model, *options, rows=2 if whole else None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    import datasets

    folder = tmp_path_factory.mktemp("saved")
    datasets.Dataset.from_list([{"prompt": "a b", "completion": "c"}, {"prompt": "d", "completion": "e é"}]).save_to_disk(
        folder
    )
    return folder


@fuzz(25)
@given(data=st.data(), name=st.sampled_from(["data-00000-of-00001.arrow", "state.json", "dataset_info.json"]))
def test_saved_data_sets(data, name, saved, model, tmp_path, capsys):
    shutil.copytree(saved, tmp_path / "saved", dirs_exist_ok=True)
    content = (saved / name).read_bytes()
    changes = damaged(content)
    if name.endswith("json"):
        changes |= mutated(json.loads(content)).map(lambda value: json.dumps(value).encode())
    (tmp_path / "saved" / name).write_bytes(data.draw(changes))
    check_inspected(capsys, tmp_path / "saved", model)


@fuzz(25)
@given(data=st.data(), name=st.sampled_from(["tokenizer.json", "tokenizer_config.json", "config.json"]))
def test_tokenizers_with_anything_in_them(data, name, model, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(model, folder, dirs_exist_ok=True)
    content = data.draw(
        mutated(json.loads((model / name).read_text())).map(lambda v: json.dumps(v).encode())
        | damaged((model / name).read_bytes())
    )
    (folder / name).write_bytes(content)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    check_inspected(capsys, tmp_path / "rows.jsonl", folder)


def described(run: Path) -> dict:
    written = {}
    write_policy(run, change=lambda description: written.update(description) or description)
    return written


@fuzz(40)
@given(data=st.data())
def test_descriptions_of_policies(data, tmp_path, capsys):
    """One that is accepted is used as it stands."""
    given_ = data.draw(mutated(described(tmp_path)))
    write_policy(tmp_path, change=lambda _: json.dumps(given_))
    status, _ = outcome(capsys, "evaluate", tmp_path, "--episodes", "1", "--quiet", "--env", "CartPole-v1")
    if status == 0:
        policy = load_policy(tmp_path)
        spaces = {"observation_dtype": "float32"} | given_["spaces"]  # files of earlier versions have no dtypes
        spaces["action"] = {"environment_dtype": ""} | spaces["action"]
        assert json.loads(json.dumps(policy.spaces.as_dict())) == spaces
        assert (policy.activation, policy.observation_clip) == (given_["activation"], given_["observation_clip"])
        assert policy.description == given_["description"]


weights = st.sampled_from(
    [
        np.zeros((4, 2), np.float32), np.zeros(2, np.float32), np.zeros((2, 4), np.float32), np.zeros((4, 2), np.float64),
        np.full(2, np.nan, np.float32), np.zeros((0, 0), np.float32), np.zeros((), np.float32), np.zeros((4, 2), np.int32),
        np.zeros((1, 4, 2), np.float32),
    ]
)  # fmt: skip
names = st.sampled_from(
    [
        *("layer_0/weight", "layer_0/bias", "layer_1/weight", "layer_1/bias", "log_std", "x", "layer_-1/weight"),
        *("observation_statistics/mean", "observation_statistics/variance", "observation_statistics/count"),
    ]
)


@fuzz(40)
@given(changes=st.dictionaries(names, weights, min_size=1, max_size=4))
def test_weights_of_policies(changes, tmp_path, capsys):
    write_policy(tmp_path, weights=lambda tensors: tensors | changes)
    outcome(capsys, "evaluate", tmp_path, "--episodes", "1", "--quiet")


@fuzz(30)
@given(data=st.data())
def test_damaged_bytes_of_policies(data, tmp_path, capsys):
    write_policy(tmp_path)
    file = tmp_path / "policy" / "policy.safetensors"
    file.write_bytes(data.draw(damaged(file.read_bytes()) | st.binary(max_size=40)))
    outcome(capsys, "evaluate", tmp_path, "--episodes", "1", "--quiet", "--env", "CartPole-v1")


def test_a_policy_that_is_whole_is_accepted(tmp_path, capsys):
    assert outcome(capsys, "evaluate", write_policy(tmp_path), "--episodes", "1", "--quiet")[0] == 0


@fuzz(25)
@given(data=st.data(), name=st.sampled_from(["config.json", "generation_config.json", "model.safetensors"]))
def test_models_with_anything_in_them(data, name, model, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(model, folder, dirs_exist_ok=True)
    content = (model / name).read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    changes = damaged(content[:header]).map(lambda start: start + content[header:])
    if name.endswith("json"):
        changes = mutated(json.loads(content)).map(lambda value: json.dumps(value).encode())
    (folder / name).write_bytes(data.draw(changes))
    outcome(capsys, "generate", folder, "--prompt", "a", "--longest", "2", "--json", "--quiet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of DPO, and what evaluating it says."""
    folder = material(tmp_path_factory.mktemp("trained"))
    align(settings("dpo", folder, folder / "run", training__epochs=1), quiet=True)
    return folder


@fuzz(20)
@given(data=st.data())
def test_configurations_of_runs_that_are_evaluated(data, trained, tmp_path, capsys):
    run = tmp_path / "run"
    if not run.exists():
        shutil.copytree(trained / "run", run)
    config = json.loads((trained / "run" / "config.json").read_text())
    read = [
        "method",
        "precision",
        "lora_rank",
        "max_length",
        "overlong",
        "share_prompts",
        "model",
        "model_folder",
        "comparison",
    ]
    read += [
        "reference_fingerprint",
        "beta",
        "objective",
        "label_smoothing",
        "length_normalized",
        "ranking_top",
        "supervised_weight",
        "trust_remote_code",
    ]
    key = data.draw(st.sampled_from(read))
    changed = config | {key: data.draw(json_values)} if data.draw(st.booleans()) else data.draw(mutated(config))
    (run / "config.json").write_text(json.dumps(changed))
    status, printed = outcome(capsys, "evaluate", run, "--data", trained / "others.jsonl", "--json", "--quiet")
    if status == 0:
        assert json.loads(printed)["method"] == changed["method"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    pytest.importorskip("minari")
    folder = tmp_path_factory.mktemp("recorded")
    record(write_policy(folder / "run"), folder / "data-v0", episodes=3)
    return folder


@fuzz(25)
@given(data=st.data(), name=st.sampled_from(["metadata.json", "main_data.hdf5"]))
def test_recorded_data_with_anything_in_them(data, name, recorded, tmp_path, capsys):
    shutil.copytree(recorded / "data-v0", tmp_path / "data-v0", dirs_exist_ok=True)
    content = (recorded / "data-v0" / "data" / name).read_bytes()
    changes = (
        mutated(json.loads(content)).map(lambda value: json.dumps(value).encode())
        if name.endswith("json")
        else damaged(content)
    )
    (tmp_path / "data-v0" / "data" / name).write_bytes(data.draw(changes))
    outcome(capsys, "evaluate", recorded / "run", "--from-data", tmp_path / "data-v0", "--accept-small-sample", "--quiet")
