"""Files, folders, splits, and names on the hub."""

from __future__ import annotations

import datasets
import pytest
from huggingface_hub import constants

from surefoot.alignment.data.reading import hub
from surefoot.alignment.data.reading.sources import open_source
from surefoot.errors import UsageError
from tests.alignment.data.helpers import write_lines


def rows(*names):
    return [{"prompt": name} for name in names]


def prompts(source):
    return [(number, row["prompt"]) for number, row in source.records()]


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(hub, "_reachable", lambda endpoint: False)


@pytest.fixture
def hub_data(monkeypatch):
    """A hub with one data set, o/n, which remembers what was asked."""
    splits = datasets.DatasetDict(train=datasets.Dataset.from_list(rows("t")), test=datasets.Dataset.from_list(rows("e")))
    asked = []

    def load(name, configuration, split):
        asked.append((name, configuration, split))
        if name != "o/n":
            raise ValueError("Dataset not\nfound.")
        return splits if split is None else splits[split]

    monkeypatch.setattr(hub, "_reachable", lambda endpoint: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_file_is_identified_by_its_content(tmp_path):
    one = open_source(str(write_lines(tmp_path / "one.jsonl", rows("a"))))
    same = open_source(str(write_lines(tmp_path / "same.jsonl", rows("a"))))
    other = open_source(str(write_lines(tmp_path / "other.jsonl", rows("b"))))
    assert prompts(one) == [(1, "a")]
    lines = open_source(str(write_lines(tmp_path / "lines.json", rows("a"))))
    assert one.checksum == same.checksum
    assert len({one.checksum, other.checksum, lines.checksum}) == 3, "the same bytes may be read in two ways"
    assert one.name == str(tmp_path / "one.jsonl")


def test_files_of_a_folder_follow_each_other_and_so_do_their_numbers(tmp_path):
    write_lines(tmp_path / "b.jsonl", rows("b1", "b2"))
    write_lines(tmp_path / "a.jsonl", rows("a1", "a2"))
    write_lines(tmp_path / ".hidden.jsonl", rows("h"))
    (tmp_path / "README.md").write_text("about")
    source = open_source(str(tmp_path))
    assert prompts(source) == [(1, "a1"), (2, "a2"), (3, "b1"), (4, "b2")]
    (tmp_path / "a.jsonl").rename(tmp_path / "aa.jsonl")
    assert open_source(str(tmp_path)).checksum == source.checksum
    (tmp_path / "aa.jsonl").rename(tmp_path / "c.jsonl")
    assert open_source(str(tmp_path)).checksum != source.checksum, "the rows come in another order"


def test_a_split_is_chosen_by_the_names_of_files_and_folders(tmp_path):
    (tmp_path / "helpful").mkdir()
    (tmp_path / "harmless").mkdir()
    write_lines(tmp_path / "helpful" / "train.jsonl", rows("t1"))
    write_lines(tmp_path / "harmless" / "train-00000-of-00001.jsonl", rows("t2"))
    write_lines(tmp_path / "helpful" / "test.jsonl", rows("e"))
    write_lines(tmp_path / "helpful" / "part_2.jsonl", rows("p"))
    source = open_source(str(tmp_path))
    assert [name for _, name in prompts(source)] == ["t2", "t1"]
    assert source.notices == (
        f"{tmp_path}: 2 of its files are read; not read, as other splits: helpful/part_2.jsonl, helpful/test.jsonl",
    )
    assert prompts(open_source(str(tmp_path), "test")) == prompts(open_source(f"{tmp_path}:test")) == [(1, "e")]
    assert prompts(open_source(str(tmp_path), "part_2")) == [(1, "p")]
    with pytest.raises(UsageError, match="no files of a split validation; splits in the names of its files: train, test"):
        open_source(str(tmp_path), "validation")


def test_a_file_without_a_split_beside_a_test_file_is_for_training(tmp_path):
    write_lines(tmp_path / "data.jsonl", rows("d"))
    write_lines(tmp_path / "dev.jsonl", rows("v"))
    assert prompts(open_source(str(tmp_path))) == [(1, "d")]
    assert prompts(open_source(str(tmp_path), "validation")) == [(1, "v")]


def test_several_splits_without_train_must_be_chosen_from(tmp_path):
    write_lines(tmp_path / "test.jsonl", rows("d"))
    assert prompts(open_source(str(tmp_path))) == [(1, "d")]
    write_lines(tmp_path / "valid.jsonl", rows("v"))
    with pytest.raises(UsageError, match="has the splits test, validation; choose one with --split"):
        open_source(str(tmp_path))


def test_folders_of_datasets_are_read(tmp_path):
    one, other = datasets.Dataset.from_list(rows("a", "b")), datasets.Dataset.from_list(rows("c"))
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=one, test=other).save_to_disk(tmp_path / "both")
    source = open_source(str(tmp_path / "one"))
    assert prompts(source) == [(1, "a"), (2, "b")]
    assert open_source(str(tmp_path / "both")).checksum == source.checksum
    assert prompts(open_source(f"{tmp_path / 'both'}:test")) == [(1, "c")]
    assert open_source(str(tmp_path / "both"), "test").checksum != source.checksum
    with pytest.raises(UsageError, match="has no split dev; there are train, test"):
        open_source(str(tmp_path / "both"), "dev")
    with pytest.raises(UsageError, match="is one split, so --split train chooses nothing"):
        open_source(str(tmp_path / "one"), "train")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(UsageError, match=r"one cannot be read as a folder of datasets\.save_to_disk"):
        open_source(str(tmp_path / "one"))


@pytest.mark.parametrize(
    ("data", "split", "complaint"),
    [
        ("/nowhere/rows.jsonl", None, "/nowhere/rows.jsonl does not exist"),
        ("rows.parquet", None, "rows.parquet does not exist"),
        ("a b", None, "a b does not exist"),
        ("a/b/c/d", None, "a/b/c/d does not exist"),
        ("x" * 5000 + "/", None, "does not exist"),
        ("\0", None, "does not exist"),
        ("o/n:train", "test", "--data o/n:train and --split test name two splits"),
    ],
)
def test_what_is_not_there_is_a_sentence(data, split, complaint):
    with pytest.raises(UsageError, match=complaint):
        open_source(data, split)


def test_what_cannot_be_read_in_a_path_is_a_sentence(tmp_path):
    with pytest.raises(UsageError, match="holds no file of a kind that is read here"):
        open_source(str(tmp_path))
    path = write_lines(tmp_path / "a.jsonl", rows("a"))
    with pytest.raises(UsageError, match="is one file, so the split test chooses nothing"):
        open_source(str(path), "test")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UsageError, match=r"a\.txt is of no kind that is read here"):
        open_source(str(tmp_path / "a.txt"))


@pytest.mark.usefixtures("no_network")
def test_a_name_without_network_is_one_sentence(capfd):
    with pytest.raises(UsageError, match=r"surefoot-nobody/nothing is no file or folder here, .* give a path, or connect"):
        open_source("surefoot-nobody/nothing")
    assert capfd.readouterr().err == ""
    assert not constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.usefixtures("no_network")
def test_without_network_only_the_cache_is_asked(monkeypatch):
    offline = []

    def load(*about, **how):
        offline.extend([constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE])
        return {"train": datasets.Dataset.from_list(rows("kept"))}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert prompts(open_source("o/n")) == [(1, "kept")]
    assert offline == [True, True]


def test_names_on_the_hub_may_have_a_configuration_and_a_split(hub_data):
    assert prompts(open_source("o/n")) == [(1, "t")]
    assert prompts(open_source("o/n/c:test")) == [(1, "e")]
    assert prompts(open_source("o/n", "test")) == [(1, "e")]
    assert hub_data == [("o/n", None, None), ("o/n", "c", "test"), ("o/n", None, "test")]
    with pytest.raises(UsageError, match=r"m cannot be loaded from the Hugging Face hub: Dataset not found$"):
        open_source("m:train[:100]")
    assert hub_data[-1] == ("m", None, "train[:100]")
