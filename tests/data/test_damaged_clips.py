"""A clip whose header is whole and whose sound is not: listed and left out in every door, with the cache and without.

Tables of other people beside the audio hinder nobody who needs no labels.
"""

import numpy as np
import pytest
import soundfile

from src.config.settings import DataConfig, SourceConfig
from src.data.labelled.clips import read_labelled
from src.data.packing.manifest import list_clips
from src.data.pretraining.datamodule import PretrainDataModule
from src.data.sources.folder import FolderSource
from tests.data.test_cache import broken_flac


@pytest.fixture
def folder(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            samples = np.random.default_rng([label, i]).uniform(-0.5, 0.5, 8000)
            soundfile.write(tmp_path / f"set/{name}/{i}.flac", samples, 16000)
    (tmp_path / "set/dog/broken.flac").write_bytes(broken_flac())
    return tmp_path / "set"


@pytest.mark.parametrize("gigabytes", [4.0, 0.0])
def test_labelled(folder, gigabytes):
    labelled = read_labelled([SourceConfig(path=str(folder))], None, None, cache_gigabytes=gigabytes)
    assert len(labelled.clips) == 6
    assert [path.rsplit("/", 1)[1] for path, _ in labelled.bad] == ["broken.flac"]


@pytest.mark.parametrize("gigabytes", [4.0, 0.0])
def test_held_out(folder, gigabytes):
    good, whole = SourceConfig(path=str(folder / "cat")), SourceConfig(path=str(folder))
    data = PretrainDataModule(
        DataConfig(sources=[good], validation=whole, batch_size=3, cache_gigabytes=gigabytes, num_workers=0)
    )
    data.setup()
    keys = [key for batch in data.val_dataloader() for key in batch["key"]]
    assert sorted(keys) == sorted(f"{name}/{i}.flac" for name in ("cat", "dog") for i in range(3))
    assert [name for name, _ in data.bad] == ["dog/broken.flac"]


@pytest.mark.parametrize(
    "table", ["LJ001|Text of it, read.|text of it, read.\n", "file_name,transcription\ncat/0.flac,meow\n"]
)
def test_tables_of_other_people(folder, table):
    (folder / "metadata.csv").write_text(table)
    source = FolderSource(str(folder))
    assert len(source) == 7  # nothing is asked of labels
    with pytest.warns(UserWarning, match=r"metadata.csv has no column .*not used for labels"):
        assert source.class_names == ["cat", "dog"]
    with pytest.warns(UserWarning, match="not used for labels"):
        assert len(list_clips([str(folder)])) == 7


def test_a_table_that_cannot_be_used_is_refused_only_by_who_needs_labels(folder):
    (folder / "labels.csv").write_text("filename,label\nmissing.flac,cat\n")
    data = PretrainDataModule(DataConfig(sources=[SourceConfig(path=str(folder))], batch_size=3, max_bad_share=0.5))
    data.setup()
    assert sum(map(len, data.sources)) == 6
    with pytest.raises(ValueError, match=r"missing\.flac"):
        read_labelled([SourceConfig(path=str(folder))], None, None)
