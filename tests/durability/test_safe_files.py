"""Files from a stranger: nothing in them runs, leads out of their folder, or takes memory that they do not account for.

Every file here would leave a mark if it could run: a file named ``ran``, which no test may find.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import ipc, parquet
from safetensors.numpy import load_file, save_file

from surefoot.alignment.data.reading.room import room
from surefoot.alignment.models.adapters import add_adapter
from surefoot.alignment.models.configuration import AdapterConfiguration
from surefoot.cli import main
from surefoot.control.compilation import _made_private
from surefoot.runs.directory import LARGEST_JSON
from tests.alignment.models.tiny import language_model, save_language_model
from tests.alignment.tokenizers import word_level

ROWS = [{"prompt": "a b", "chosen": "good", "rejected": "bad b"}, {"prompt": "c d", "chosen": "yes", "rejected": "no"}]


class Mark:
    """Unpickled, it would leave a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


def code_that_marks(place: Path) -> str:
    return f"from pathlib import Path\nPath({str(place)!r}).touch()\n"


@pytest.fixture
def mark(tmp_path):
    place = tmp_path / "ran"
    yield place
    assert not place.exists()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    save_language_model(folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    model = add_adapter(language_model(), AdapterConfiguration(lora_rank=2))
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    settings(folder / "adapter" / "adapter_config.json", base_model_name_or_path=str(folder / "model"))
    return folder


@pytest.fixture
def model(original, tmp_path):
    return Path(shutil.copytree(original / "model", tmp_path / "model"))


@pytest.fixture
def adapter(original, tmp_path):
    return Path(shutil.copytree(original / "adapter", tmp_path / "adapter"))


def settings(path: Path, **changes) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


@contextmanager
def little_memory(megabytes: int = 1500):
    """Whatever asks for more than so much on top of what is there gets a MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(capsys, *arguments, status: int = 2) -> str:
    """One sentence, and status 2."""
    capsys.readouterr()
    with little_memory():
        assert main([str(argument) for argument in arguments]) == status
    printed = capsys.readouterr()
    (sentence,) = [line for line in printed.err.splitlines() if line.startswith("surefoot: ")]
    assert "Traceback" not in printed.err
    assert "MemoryError" not in sentence
    assert printed.err.rstrip().endswith(sentence)
    return sentence


def generates(*arguments) -> int:
    return main(["generate", *map(str, arguments), "--prompt", "a", "--longest", "2", "--quiet"])


def test_weights_as_pickle_are_not_read(original, model, mark, capsys):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"lm_head.weight": Mark(mark)}))
    assert "holds its weights as pickle" in refused(capsys, "generate", model, "--prompt", "a")
    torch.save({"lm_head.weight": Mark(mark)}, model / "pytorch_model.bin")
    settings(model / "pytorch_model.bin.index.json", metadata={}, weight_map={"lm_head.weight": "pytorch_model.bin"})
    assert "holds its weights as pickle" in refused(capsys, "generate", model, "--prompt", "a")


def test_pickle_beside_good_weights_is_never_opened(model, mark):
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "tokenizer.pkl"):
        (model / name).write_bytes(pickle.dumps(Mark(mark)))
    assert generates(model) == 0


@pytest.mark.parametrize(
    "place", ["evil.bin", "../evil.safetensors", "/etc/passwd", "missing.safetensors", "a\0b.safetensors", ""]
)
def test_an_index_that_names_other_files_than_the_folders_safetensors(place, model, mark, capsys):
    (model / "evil.bin").write_bytes(pickle.dumps(Mark(mark)))
    shutil.copy(model / "model.safetensors", model.parent / "evil.safetensors")
    names = list(load_file(model / "model.safetensors"))
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    settings(model / "model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys(names, place))
    assert "which is no safetensors file of that folder" in refused(capsys, "generate", model, "--prompt", "a")
    settings(model / "model.safetensors.index.json", weight_map=dict.fromkeys(names, "model-1.safetensors"))
    assert generates(model) == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"transformers_weights": "adapter_model.bin"}, "names a file of weights of its own"),
        ({"attn_implementation": "someone/kernel"}, "asks for 'someone/kernel', code from the hub"),
        ({"experts_implementation": {"": "someone/kernel:f"}}, "code from the hub"),
        ({"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}, "allow it with --trust-remote-code"),
        ({"auto_map": {"AutoModelForCausalLM": "someone/else--evil.Model"}, "model_type": "evil"}, "cannot be loaded"),
        ({"architectures": 3}, "names no classes as its architectures"),
        ({"num_labels": 10**12}, "says num_labels 1000000000000"),
        ({"num_hidden_layers": -1}, "describes -1 layers"),
        ({"num_hidden_layers": 10**7}, "describes 10000000 layers, and the files hold"),
        ({"num_hidden_layers": 10**400}, "layers"),
        ({"vocab_size": 10**9}, "describes a model of"),
        ({"hidden_size": 10**6, "head_dim": 4}, "describes a model of"),
        ({"intermediate_size": 10**12}, "describes a model of"),
        ({"hidden_size": "sixteen"}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 0}, "zero"),
        ({"model_type": "\x1b[2J"}, "cannot be loaded"),
    ],
)
def test_a_models_configuration(change, sentence, model, mark, capsys):
    (model / "adapter_model.bin").write_bytes(pickle.dumps(Mark(mark)))
    (model / "evil.py").write_text(code_that_marks(mark))
    settings(model / "config.json", **change)
    said = refused(capsys, "generate", model, "--prompt", "a")
    assert sentence in said
    assert said.isprintable()


def test_code_beside_a_model_that_needs_none_does_not_run(model, mark):
    (model / "evil.py").write_text(code_that_marks(mark))
    (model / "conftest.py").write_text(code_that_marks(mark))
    settings(model / "config.json", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    settings(model / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.Tokenizer"]})
    settings(model / "generation_config.json", custom_generate="evil", trust_remote_code=True)
    assert generates(model) == 0


def test_a_tokenizer_that_is_code(model, mark, capsys):
    (model / "evil.py").write_text(code_that_marks(mark))
    settings(
        model / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.Tokenizer"]}, tokenizer_class="EvilTokenizer"
    )
    (model / "tokenizer.json").rename(model / "vocab.txt")
    settings(model / "config.json", model_type="evil")
    said = refused(capsys, "inspect", model.parent / "none.jsonl", "--model", model)
    assert "allow it with --trust-remote-code" in said


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch PLACE') }}",
        "{{ messages.__class__.__base__.__subclasses__()[0].__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].popen('touch PLACE').read() }}",
        "{% for i in range(10000000000) %}x{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_chat_template_reaches_nothing(template, model, mark, tmp_path, capsys):
    (model / "chat_template.jinja").write_text(template.replace("PLACE", str(mark)))
    data = tmp_path / "messages.jsonl"
    data.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}))
    assert "has no row that can be used: the chat template" in refused(capsys, "inspect", data, "--model", model)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "tokenizer.json"])
def test_json_of_a_model_is_bounded(name, model, capsys):
    with open(model / name, "r+b") as file:
        file.truncate(LARGEST_JSON * 100)
    assert "bytes, and may have" in refused(capsys, "generate", model, "--prompt", "a")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "TEXT", "tokenizer_name_or_path": "."},
            "of the kind 'PROMPT_TUNING'",
        ),
        ({"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "evil.bin"}, "which cannot be merged"),
        ({"peft_type": "XLORA", "adapters": {"0": "evil"}}, "which cannot be merged"),
        ({"megatron_config": {}, "megatron_core": "evil"}, "whose settings name modules to be imported"),
        ({"r": 10**7}, "has a rank that no weight in adapter_model.safetensors has"),
        ({"rank_pattern": {"q_proj": 10**7}}, "has a rank that no weight"),
        ({"layer_replication": [[0, 10**8]]}, "copies layers of its base model"),
        ({"base_model_name_or_path": "."}, "is an adapter to another adapter"),
        ({"base_model_name_or_path": 3}, "base model"),
        ({"target_modules": None, "r": "x"}, "cannot be loaded"),
    ],
)
def test_an_adapters_settings(change, sentence, adapter, mark, capsys, monkeypatch):
    monkeypatch.chdir(adapter)  # where a module named evil would be found
    monkeypatch.syspath_prepend("")
    (adapter / "evil.py").write_text(code_that_marks(mark))
    (adapter / "evil.bin").write_bytes(pickle.dumps(Mark(mark)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]) / name, adapter)
    assert generates(adapter) == 0
    settings(adapter / "adapter_config.json", **change)
    assert sentence in refused(capsys, "generate", adapter, "--prompt", "a")


def test_an_adapter_as_pickle(adapter, mark, capsys):
    word_level().save_pretrained(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Mark(mark)))
    assert "is an adapter without adapter_model.safetensors" in refused(capsys, "generate", adapter, "--prompt", "a")


def inspected(capsys, data, original) -> str:
    return refused(capsys, "inspect", data, "--model", original / "model")


@pytest.fixture
def small_room(monkeypatch):
    for module in ("room", "files"):
        monkeypatch.setattr(f"surefoot.alignment.data.reading.{module}.room", lambda: 1 << 22)


def test_a_small_file_that_unpacks_into_much(original, small_room, tmp_path, capsys):
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b" " * (1 << 24)) * 200)
    with little_memory(100):
        assert "is half of the memory that is free" in inspected(capsys, tmp_path / "bomb.jsonl.gz", original)
    table = pa.table({"prompt": pa.array(["a" * 1000] * 100_000).dictionary_encode(), "completion": ["b"] * 100_000})
    parquet.write_table(table, tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 20_000
    assert "is half of the memory that is free" in inspected(capsys, tmp_path / "bomb.parquet", original)
    with ipc.new_file(tmp_path / "bomb.arrow", table.schema, options=ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_table(table, max_chunksize=1000)
    assert "is half of the memory that is free" in inspected(capsys, tmp_path / "bomb.arrow", original)


def test_a_file_larger_than_the_memory(original, tmp_path, capsys):
    assert 1 << 20 < room() < 1 << 43
    with open(tmp_path / "sparse.jsonl", "wb") as file:
        file.truncate(1 << 43)
    assert "is half of the memory that is free" in inspected(capsys, tmp_path / "sparse.jsonl", original)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_arrows_extension_types_are_not_unpickled(name, original, mark, tmp_path):
    field = pa.field(
        "prompt",
        pa.string(),
        metadata={
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(Mark(mark)),
        },
    )
    schema = pa.schema([field, pa.field("completion", pa.string())])
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], schema=schema)
    if name.endswith("parquet"):
        parquet.write_table(table, tmp_path / name)
    else:
        with ipc.new_file(tmp_path / name, schema) as file:
            file.write_table(table)
    assert main(["inspect", str(tmp_path / name), "--model", str(original / "model")]) == 0


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "arrow", "jsonl.gz"])
def test_pickle_under_the_name_of_data(ending, original, mark, tmp_path, capsys):
    (tmp_path / f"rows.{ending}").write_bytes(pickle.dumps(Mark(mark)))
    assert f"rows.{ending}" in inspected(capsys, tmp_path / f"rows.{ending}", original)


def test_the_loading_script_of_a_folder_does_not_run(original, mark, tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("data.py", "dataset_script.py", "__init__.py"):
        (folder / name).write_text(code_that_marks(mark))
    assert "holds no file of a kind that is read here" in inspected(capsys, folder, original)
    shutil.copy(original / "pairs.jsonl", folder)
    assert main(["inspect", str(folder), "--model", str(original / "model")]) == 0


def test_a_saved_data_set_that_names_files_elsewhere(original, tmp_path, capsys):
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    state = tmp_path / "saved" / "train" / "state.json"
    whole = state.read_text()
    for place in ("../../other.arrow", "/etc/passwd", 3, None):
        state.write_text(json.dumps(json.loads(whole) | {"_data_files": [{"filename": place}]}))
        assert "which is no file in it" in inspected(capsys, tmp_path / "saved", original)
    state.write_text(whole)
    for splits in (["../other"], [".."], ["/etc"], {"a": 1}, None):
        (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
        assert "which is no file in it" in inspected(capsys, tmp_path / "saved", original)


def test_what_data_say_cannot_steer_the_terminal(original, tmp_path, capsys):
    rows = [{"prompt": "\x1b[2J\x07 a", "chosen": "good\x1b]0;title\x07", "rejected": "bad", "\x1b[31mred": 1}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["inspect", str(tmp_path / "rows.jsonl"), "--model", str(original / "model")]) == 0
    printed = capsys.readouterr()
    assert "\\x1b[31mred" in printed.out
    assert "\x1b]" not in printed.out + printed.err
    assert "\x07" not in printed.out + printed.err
    (tmp_path / "others.jsonl").write_text(json.dumps({"\x1b[31mred": 1}))
    assert "\\x1b[31mred" in inspected(capsys, tmp_path / "others.jsonl", original)


def write_policy(
    run: Path, change=lambda description: description, weights=lambda tensors: tensors, env: str = "CartPole-v1"
) -> Path:
    """The files of a policy, as somebody may write them."""
    action = {"kind": "discrete", "sizes": [2], "start": [0], "low": [], "high": [], "environment_dtype": "int64"}
    description = {
        "spaces": {"observation_size": 4, "action": action, "observation_dtype": "float32"},
        "activation": "tanh",
        "observation_clip": 10.0,
        "description": {"env": env},
    }
    tensors = {"layer_0/weight": np.zeros((4, 2), np.float32), "layer_0/bias": np.zeros(2, np.float32)}
    (run / "policy").mkdir(parents=True, exist_ok=True)
    text = change(description)
    metadata = {"surefoot": text if isinstance(text, str) else json.dumps(text)}
    save_file(weights(tensors), run / "policy" / "policy.safetensors", metadata=metadata)
    return run


def test_a_policy_that_names_code_as_its_environment(mark, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(code_that_marks(mark))
    for env in ("evil:make", "evil:Make-v0", "evil.inner:make"):
        said = refused(capsys, "evaluate", write_policy(tmp_path / "run", env=env))
        assert f"the policy was trained in {env}, which is code that would be imported and run" in said
    assert main(["evaluate", str(write_policy(tmp_path / "run")), "--episodes", "1", "--quiet"]) == 0


def test_the_environment_that_is_code_can_be_named(tmp_path, capsys):
    run = write_policy(tmp_path / "run", env="tests.durability.test_safe_files:cart")
    assert "give --env tests.durability.test_safe_files:cart" in refused(capsys, "evaluate", run)
    assert main(["evaluate", str(run), "--env", "tests.durability.test_safe_files:cart", "--episodes", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["env"] == "tests.durability.test_safe_files:cart"


def cart():
    import gymnasium

    return gymnasium.make("CartPole-v1")


def test_a_policy_as_pickle(mark, tmp_path, capsys):
    run = write_policy(tmp_path / "run")
    (run / "policy" / "policy.safetensors").write_bytes(pickle.dumps(Mark(mark)))
    assert "is damaged or not a surefoot policy" in refused(capsys, "evaluate", run)
    with zipfile.ZipFile(run / "policy" / "policy.safetensors", "w") as archive:  # as torch.save and np.savez write
        archive.writestr("data.pkl", pickle.dumps(Mark(mark)))
    assert "is damaged or not a surefoot policy" in refused(capsys, "evaluate", run)
    header = json.dumps({"layer_0/weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (run / "policy" / "policy.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "is damaged or not a surefoot policy" in refused(capsys, "evaluate", run)
    (run / "policy" / "policy.safetensors").write_bytes(struct.pack("<Q", 1 << 60))
    assert "is damaged or not a surefoot policy" in refused(capsys, "evaluate", run)


@pytest.fixture
def remote(original, tmp_path):
    """The folder of a run of fine-tuning whose model is code, and whose configuration says that this may run."""
    run = tmp_path / "run"
    shutil.copytree(original / "model", run / "model")
    settings(
        run / "model" / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.M"},
    )
    said = {
        "method": "sft", "precision": "auto", "lora_rank": 0, "trust_remote_code": True, "max_length": 64, "overlong": "truncate",
        "share_prompts": True, "model": "m", "model_folder": "m", "comparison": None, "reference_fingerprint": None,
        "reward": "evil.py:f",
    }  # fmt: skip
    settings(run / "config.json", **said)
    return run


def test_a_run_that_says_its_models_code_may_run(remote, original, mark, capsys):
    (remote / "model" / "evil.py").write_text(code_that_marks(mark))
    said = refused(capsys, "evaluate", remote, "--data", original / "pairs.jsonl")
    assert "allow it with --trust-remote-code" in said


def test_its_code_runs_where_the_user_says_so(remote, original, tmp_path, capsys):
    (remote / "model" / "evil.py").write_text(code_that_marks(tmp_path / "asked"))
    refused(capsys, "evaluate", remote, "--data", original / "pairs.jsonl", "--trust-remote-code")
    assert (tmp_path / "asked").exists(), "the tests above would not see code that runs"


@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_a_runs_configuration_is_bounded(command, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    with open(run / "config.json", "wb") as file:
        file.truncate(1 << 40)
    assert f"it has more than {LARGEST_JSON:,} bytes" in refused(capsys, command, run)
    (run / "config.json").unlink()
    os.mkfifo(run / "config.json")
    refused(capsys, command, run)


def test_recorded_data_with_links_and_claims(tmp_path, capsys):
    h5py = pytest.importorskip("h5py")
    from tests.control.recorded.recordings import save_policy

    run = save_policy(tmp_path / "run", "CartPole-v1")
    assert main(["evaluate", str(run), "--record", str(tmp_path / "data-v0"), "--episodes", "2", "--quiet"]) == 0
    place = tmp_path / "data-v0" / "data"
    whole, metadata = (place / "main_data.hdf5").read_bytes(), (place / "metadata.json").read_text()

    def said_of(change) -> str:
        (place / "main_data.hdf5").write_bytes(whole)
        (place / "metadata.json").write_text(metadata)
        with h5py.File(place / "main_data.hdf5", "r+") as file:
            change(file)
        return refused(capsys, "evaluate", run, "--from-data", tmp_path / "data-v0")

    def replaced(name, make):
        def change(file):
            del file["episode_0"][name]
            make(file["episode_0"])

        return said_of(change)

    assert "holds a link" in replaced("rewards", lambda e: e.__setitem__("rewards", h5py.ExternalLink("/etc/other.hdf5", "/x")))
    assert "holds a link" in replaced("rewards", lambda e: e.__setitem__("rewards", h5py.SoftLink("/episode_1/rewards")))
    external = lambda e: e.create_dataset("rewards", (8,), "f8", external=[("/etc/passwd", 0, 64)])  # noqa: E731
    assert "in another file" in replaced("rewards", external)
    layout = h5py.VirtualLayout((8,), "f8")
    layout[:] = h5py.VirtualSource("/etc/other.hdf5", "x", (8,))
    assert "in another file" in replaced("rewards", lambda e: e.create_virtual_dataset("rewards", layout))
    huge = lambda e: e.create_dataset("rewards", (1 << 40,), "f8", chunks=(1 << 16,))  # noqa: E731
    assert "has no room for so many" in replaced("rewards", huge)
    assert "nested deeper" in said_of(lambda file: file["episode_0"].__setitem__("again", file["episode_0"]))
    for count in (1 << 50, -1, "2", None, True):
        (place / "main_data.hdf5").write_bytes(whole)
        settings(place / "metadata.json", total_episodes=count)
        assert "no number of them" in refused(capsys, "evaluate", run, "--from-data", tmp_path / "data-v0")
    settings(place / "metadata.json", total_episodes=1 << 39)
    assert "has no room for so many" in refused(capsys, "evaluate", run, "--from-data", tmp_path / "data-v0")


def test_compiled_programs_are_kept_where_nobody_else_can_write(tmp_path):
    folder = tmp_path / "xla"
    folder.mkdir()
    folder.chmod(0o777)
    assert _made_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(folder)
    assert not _made_private(tmp_path / "link")
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
        assert not _made_private(folder)
