"""From clips to rows: what cannot be embedded is listed, never a row of NaN; odd sound is said once."""

import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from src.data.sources.folder import FolderSource
from src.encoders.load import load_encoder
from src.encoders.save import save_encoder
from src.errors import UserError
from src.evaluation import collection as module
from src.evaluation.collection import Settings, embed_collection
from src.evaluation.embedding_file import EmbeddingFile
from src.models.sizes import create_encoder


@pytest.fixture(scope="module")
def encoder():
    return create_encoder("tiny").eval()


def embed(folder, encoder, out, level="clip"):
    file = EmbeddingFile(out, {})
    bad = embed_collection(encoder, [FolderSource(str(folder))], file, Settings(level=level), 1, lambda *_: None)
    file.finish()
    table = pq.read_table(out).to_pydict()
    assert np.isfinite(np.array(table["embedding"])).all()
    return {path.rsplit("/", 1)[1] for path in table["path"]}, {path.rsplit("/", 1)[1]: why for path, why in bad}


@pytest.mark.parametrize("level", ["clip", "frame"])
@pytest.mark.parametrize("long_seconds", [60.0, 0.3])
def test_huge_samples_and_embeddings_that_are_not_finite(
    tmp_path, encoder, write_wav, monkeypatch, level, long_seconds
):
    write_wav(tmp_path / "set/good.wav", 0.5)
    write_wav(tmp_path / "set/huge.wav", 0.5, peak=3e38)
    monkeypatch.setattr(module, "LONG_SECONDS", long_seconds)
    names, bad = embed(tmp_path / "set", encoder, tmp_path / "a.parquet", level)
    assert names == {"good.wav"} and "they must be in [-1, 1]" in bad["huge.wav"]
    broken = create_encoder("tiny").eval()
    with torch.no_grad():
        broken.blocks[3].mlp.fc1.weight[0, 0] = float("nan")
    file = EmbeddingFile(tmp_path / "b.parquet", {})
    bad = embed_collection(
        broken, [FolderSource(str(tmp_path / "set"))], file, Settings(level=level), 1, lambda *_: None
    )
    assert not file.done and dict(bad)[str(tmp_path / "set/good.wav")] == "the encoder gives NaN or inf for it"


@pytest.mark.parametrize("long_seconds", [60.0, 0.3])
def test_odd_sound_is_embedded_and_said_once_for_each_kind(tmp_path, encoder, write_wav, monkeypatch, long_seconds):
    import soundfile

    write_wav(tmp_path / "set/good.wav", 0.5)
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"set/silent-{name}.wav", np.zeros(8000), 16000)
    soundfile.write(tmp_path / "set/dc.wav", np.full(8000, 0.5), 16000)
    monkeypatch.setattr(module, "LONG_SECONDS", long_seconds)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names, bad = embed(tmp_path / "set", encoder, tmp_path / "a.parquet")
    said = sorted(str(each.message) for each in caught if "used as" in str(each.message))
    assert len(names) == 4 and not bad and len(said) == 2
    assert said[0].startswith("1 clip with a constant") and said[1].startswith("2 clips with digital silence")


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, encoder):
    damaged = create_encoder("tiny").eval()
    with torch.no_grad():
        damaged.blocks[3].mlp.fc1.weight[0, 0] = float("nan")
    save_encoder(damaged, tmp_path / "nan")
    with pytest.raises(UserError, match=r"^[^\n]*NaN or inf: blocks\.3\.mlp\.fc1\.weight; [^\n]*$"):
        load_encoder(tmp_path / "nan")
