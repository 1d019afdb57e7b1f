"""The official package (`dasheng` 0.0.9) and this project read each other's files and compute the same."""

import shutil

import pytest
import torch

pytest.importorskip("dasheng", reason="the official package is a development dependency")

from dasheng.pretrained.pretrained import Dasheng
from safetensors.torch import load_file, save_file

from benchmarks.parity import randomize
from src.encoders.load import load_encoder, read_checkpoint
from src.encoders.save import save_encoder
from src.errors import UserError
from src.export import export
from src.models.decoder import Decoder
from src.models.initialize import initialize
from src.models.mae import MaskedAutoencoder
from src.models.sizes import SIZES
from src.models.vit import AudioViT

TOLERANCE = 1e-5  # of outputs up to 10, fp32, two implementations of attention
SECONDS = [0.1, 1.0, 2.5, 10.08, 20.0, 30.24, 31.0, 65.0]


def make_encoder(width: int, depth: int, heads: int, **more) -> AudioViT:
    encoder = AudioViT(width, depth, heads, **more)
    initialize(encoder, 0, "encoder")
    decoder = Decoder(width, 16, 1, 1)
    initialize(decoder, 0, "decoder")
    return randomize(MaskedAutoencoder(encoder, decoder), 0).encoder.eval()


def differences(ours: AudioViT, theirs: Dasheng, audio: torch.Tensor, seconds: list[float]) -> list[float]:
    audio = audio.repeat(3)
    worst = []
    with torch.no_grad():
        for each in seconds:
            clip = audio[None, : round(each * 16000)]
            worst.append(float((ours(clip) - theirs(clip)).abs().max()))
    return worst


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A file written by the official code, and its network."""
    torch.manual_seed(0)
    arguments = {"embed_dim": 192, "depth": 3, "num_heads": 3, "init_values": 0.3}
    theirs = Dasheng(**arguments).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
        theirs.init_bn[1].running_mean.fill_(-30)
        theirs.init_bn[1].running_var.fill_(200)
    file = tmp_path_factory.mktemp("official") / "dasheng.pt"
    torch.save({"model": theirs.state_dict(), "config": arguments}, file)
    return file, theirs


def test_we_read_their_file(official, long_audio):
    file, theirs = official
    assert max(differences(load_encoder(file), theirs, long_audio, SECONDS)) <= TOLERANCE


def test_a_classifier_is_read_without_its_head(official, tmp_path):
    file, _ = official
    content = torch.load(file, weights_only=True)
    content["model"] |= {"outputlayer.0.weight": torch.ones(192), "outputlayer.1.weight": torch.ones(527, 192)}
    torch.save(content, tmp_path / "classifier.pt")
    state, same = load_encoder(tmp_path / "classifier.pt").state_dict(), load_encoder(file).state_dict()
    assert all(torch.equal(state[name], same[name]) for name in same)


@pytest.mark.parametrize(
    "size", ["tiny", "base", *(pytest.param(size, marks=pytest.mark.slow) for size in ("0.6b", "1.2b"))]
)
def test_they_read_our_file(size, tmp_path, long_audio):
    """Width and heads of each size, with two blocks (all blocks: the slow test)."""
    shape = SIZES[size].encoder
    ours = make_encoder(shape.width, 2, shape.num_heads)
    save_encoder(ours, tmp_path / "folder")
    export(str(tmp_path / "folder"), "dasheng", tmp_path / "ours.pt")
    theirs = Dasheng.from_pretrained(str(tmp_path / "ours.pt")).eval()
    assert max(differences(ours, theirs, long_audio, SECONDS)) <= TOLERANCE
    again = load_encoder(tmp_path / "ours.pt")
    assert again.architecture == ours.architecture
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in ours.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "0.6b", "1.2b"])
def test_whole_sizes_both_ways(size, tmp_path, long_audio):
    ours = make_encoder(*SIZES[size].encoder)
    save_encoder(ours, tmp_path / "folder")
    export(str(tmp_path / "folder"), "dasheng", tmp_path / "ours.pt")
    shutil.rmtree(tmp_path / "folder")  # a file of 1.2b takes 4.5 GB
    theirs = Dasheng.from_pretrained(str(tmp_path / "ours.pt")).eval()
    (tmp_path / "ours.pt").unlink()
    torch.save({"model": theirs.state_dict(), "config": {"num_heads": ours.num_heads}}, tmp_path / "theirs.pt")
    del ours
    assert max(differences(load_encoder(tmp_path / "theirs.pt"), theirs, long_audio, [0.1, 31.0])) <= 2e-5


def test_batches_differ_by_design(official, long_audio):
    """The official dB floor is relative to the batch's maximum: a quiet clip's tokens depend on the other clips."""
    file, theirs = official
    ours, quiet, loud = load_encoder(file), 1e-4 * long_audio[:16000], 30 * long_audio[16000:32000]
    batch = torch.stack([quiet, loud])
    with torch.no_grad():
        assert (theirs(batch)[:1] - theirs(quiet[None])).abs().max() > 1e-2
        assert (ours(batch)[:1] - ours(quiet[None])).abs().max() <= TOLERANCE


def test_the_hugging_face_format(official, tmp_path, long_audio):
    """Names under `encoder.`, no front-end weights, shape in the config, as DashengModel.save_pretrained writes it."""
    file, theirs = official
    export(str(file), "huggingface", tmp_path / "hub")
    weights = load_file(tmp_path / "hub/model.safetensors")
    expected = {f"encoder.{name}" for name in theirs.state_dict() if not name.startswith("front_end")}
    assert set(weights) == expected
    save_file({**weights, "outputlayer.0.weight": torch.ones(192)}, tmp_path / "hub/model.safetensors")
    assert max(differences(load_encoder(tmp_path / "hub"), theirs, long_audio, [1.0, 31.0])) <= TOLERANCE


@pytest.mark.parametrize("target_length", [504, 2016])
def test_a_resized_time_table_equals_theirs(official, target_length, long_audio):
    file, _ = official
    with pytest.warns(UserWarning, match="time table"):
        ours = load_encoder(file, target_length=target_length)
    theirs = Dasheng.from_pretrained(str(file), target_length=target_length).eval()
    assert max(differences(ours, theirs, long_audio, [1.0, 7.0, 31.0])) <= TOLERANCE


def test_another_mel_grid_is_resampled_with_a_warning(official, long_audio):
    file, _ = official
    with pytest.warns(UserWarning, match=r"patch projection.*\[80, 8\]"):
        encoder = load_encoder(file, n_mels=80, patch_frames=8)
    assert encoder(long_audio[None, :160000]).shape == (1, 125, 192) and encoder.hop_seconds == 0.08
    assert encoder.max_tokens * 8 == 1008


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"win_size": 400}, "win_size=400"),
        ({"center": False}, "center=False"),
        ({"patch_stride": [64, 2]}, "patch_stride"),
        ({"attention_type": "Other"}, "attention_type"),
    ],
)
def test_unsupported_arguments_are_refused(official, tmp_path, change, words):
    content = torch.load(official[0], weights_only=True)
    torch.save({**content, "config": {**content["config"], **change}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=words):
        read_checkpoint(tmp_path / "other.pt")


def test_num_heads_of_a_release_follows_from_its_width(official, tmp_path):
    content = torch.load(official[0], weights_only=True)
    torch.save({**content, "config": {}}, tmp_path / "bare.pt")
    assert load_encoder(tmp_path / "bare.pt").num_heads == 3
