"""Round trips between all formats in a fresh process, sharded checkpoints, and error messages."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from benchmarks.parity import randomize
from src import export
from src.config.settings import CallbackConfig, Config, SourceConfig
from src.encoders.load import load_classifier, load_encoder, read_checkpoint
from src.encoders.save import save_encoder
from src.errors import UserError
from src.models import create_mae
from src.models.classifier import AudioClassifier

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-6
FORMS = ("file", "shards", "folder", "dasheng", "huggingface")


def lightning_content(mae) -> dict:
    """A checkpoint as training writes it (tests/pretraining/test_run.py loads a real one)."""
    architecture = {"encoder": mae.encoder.architecture, "decoder": mae.decoder.architecture}
    state = {f"model.{name}": value for name, value in mae.state_dict().items()}
    return {"state_dict": state, "global_step": 7, "run": {"architecture": architecture, "config": {"seed": 0}}}


def write_shards(content: dict, folder: Path) -> None:
    """As Lightning's ModelParallelStrategy writes them: tensors as shards, the rest in meta.pt."""
    optimizer = {"state": {"w": torch.zeros(3)}, "param_groups": [{"lr": 0.1}]}
    dcp.save({"state_dict": content["state_dict"], "optimizer_0": optimizer}, checkpoint_id=folder, no_dist=True)
    torch.save({key: value for key, value in content.items() if key != "state_dict"}, folder / "meta.pt")


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """One masked autoencoder in every format, and the network itself."""
    folder = tmp_path_factory.mktemp("forms")
    mae = randomize(create_mae("tiny"), 0).eval()
    content = lightning_content(mae)
    torch.save(content, folder / "file.ckpt")
    write_shards(content, folder / "shards")
    for form, name in (("folder", "folder"), ("dasheng", "dasheng.pt"), ("huggingface", "huggingface")):
        assert export.main([str(folder / "file.ckpt"), "--format", form, "--out", str(folder / name)]) == 0
    paths_by_form = {form: next(folder.glob(f"{form}*")) for form in FORMS}
    return paths_by_form, mae


FRESH = """
import json, sys, torch
from src.encoders.load import load_encoder
audio = torch.load(sys.argv[1])
result = {}
for path in sys.argv[2:]:
    encoder = load_encoder(path)
    with torch.no_grad():
        result[path] = {"state": encoder.state_dict(), "tokens": encoder(audio)}
heavy = {"lightning", "datasets", "soundfile", "transformers"} & {name.split(".")[0] for name in sys.modules}
assert not heavy, heavy
torch.save(result, sys.argv[1])
"""


@pytest.mark.slow
def test_each_pair_of_formats_round_trips_in_a_fresh_process(forms, tmp_path, long_audio):
    paths_by_form, mae = forms
    paths = [str(path) for path in paths_by_form.values()]
    for source, path in paths_by_form.items():
        for target, name in (("folder", "a"), ("dasheng", "a.pt"), ("huggingface", "b")):
            out = tmp_path / f"{source}-{name}"
            assert export.main([str(path), "--format", target, "--out", str(out)]) == 0
            paths.append(str(out))
    audio = long_audio[None, : 31 * 16000]
    torch.save(audio, tmp_path / "exchange")
    command = [sys.executable, "-W", "ignore", "-c", FRESH, str(tmp_path / "exchange"), *paths]
    subprocess.run(command, cwd=ROOT, check=True)
    loaded = torch.load(tmp_path / "exchange")
    with torch.no_grad():
        expected = mae.encoder(audio)
    state = mae.encoder.state_dict()
    assert len(loaded) == 5 + 15
    for path, result in loaded.items():
        assert result["state"].keys() == state.keys(), path
        assert all(torch.equal(result["state"][name], value) for name, value in state.items()), path
        assert (result["tokens"] - expected).abs().max() <= TOLERANCE, path


def test_an_export_loads_with_few_packages(forms):
    """Without lightning, wandb, datasets, omegaconf, soundfile or the Hub client."""
    missing = "wandb lightning datasets omegaconf soundfile soxr pyarrow huggingface_hub transformers rich matplotlib"
    program = (
        f"import sys\nfor name in {missing.split()!r}: sys.modules[name] = None\n"
        f"from src.encoders.load import load_encoder; print(load_encoder({str(forms[0]['folder'])!r}).embed_dim)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "192", done.stderr


def test_our_formats_include_the_decoder(forms):
    paths_by_form, mae = forms
    for form in ("file", "shards", "folder"):
        stored = read_checkpoint(paths_by_form[form])
        assert stored.decoder_architecture == mae.decoder.architecture
        assert all(torch.equal(stored.decoder[name], value) for name, value in mae.decoder.state_dict().items())
        assert stored.record["step"] == 7
    assert not read_checkpoint(paths_by_form["dasheng"]).decoder


def test_a_folder_is_self_contained(tmp_path):
    mae = create_mae("tiny")
    classifier = AudioClassifier(mae.encoder, ["dog", "cat", "Ü"], layer=[0, 6], pooling="mean_std", multi=True)
    save_encoder(mae.encoder, tmp_path / "a", classifier=classifier, record={"step": 5})
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["classifier"] == classifier.settings and config["training"] == {"step": 5}
    assert (
        config["sample_rate"] == 16000
        and config["hop_seconds"] == 0.04
        and config["encoder"]["log_mel"]["n_mels"] == 64
    )
    assert "dog, cat, Ü" in (tmp_path / "a/README.md").read_text() and not (tmp_path / "a/decoder.safetensors").exists()
    assert load_file(tmp_path / "a/model.safetensors")["head.1.weight"].shape == (3, 768)
    loaded = load_classifier(tmp_path / "a")
    assert loaded.settings == classifier.settings and loaded.encoder.depth == 6
    with pytest.raises(UserError, match="already"):
        save_encoder(mae.encoder, tmp_path / "a")
    assert not list(tmp_path.glob("*.partial"))


def test_an_export_has_no_local_paths(tmp_path):
    config = Config(name="run", runs_folder=str(tmp_path / "runs"))
    config.data.path, config.data.test = str(tmp_path / "set"), SourceConfig(path=str(tmp_path / "test"))
    config.data.sources = [SourceConfig(path=str(tmp_path / "a")), SourceConfig(path="hf://owner/set", weight=2.0)]
    config.model.init_from, config.check.train = "dasheng-base", SourceConfig(path="local/set")
    config.callbacks = [CallbackConfig("my.Own", {"folder": str(tmp_path)})]
    config.tracking.entity = "my-company"
    save_encoder(create_mae("tiny").encoder, tmp_path / "a", record={"step": 5, "config": dataclasses.asdict(config)})
    text = (tmp_path / "a/config.json").read_text()
    assert str(tmp_path) not in text and "local/set" not in text and "my-company" not in text
    kept = json.loads(text)["training"]["config"]
    assert kept["data"]["sources"][1]["path"] == "hf://owner/set" and kept["data"]["sources"][1]["weight"] == 2.0
    assert kept["model"]["init_from"] == "dasheng-base" and kept["seed"] == 0


@pytest.mark.parametrize("form", ["dasheng", "huggingface"])
def test_a_format_without_a_head_says_what_it_leaves_out(tmp_path, capsys, form):
    encoder = create_mae("tiny").encoder
    save_encoder(encoder, tmp_path / "a", classifier=AudioClassifier(encoder, ["dog", "cat"]))
    assert export.main([str(tmp_path / "a"), "--format", form, "--out", str(tmp_path / "b")]) == 0
    assert "head and classes (dog, cat) are left out" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_exports_have_the_permissions_of_the_umask(forms, tmp_path):
    umask = 0o027
    before = os.umask(umask)
    try:
        for form in ("folder", "dasheng", "huggingface"):
            assert export.main([str(forms[0]["file"]), "--format", form, "--out", str(tmp_path / form)]) == 0
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_half_precision_is_read_as_fp32(forms, tmp_path):
    content = torch.load(forms[0]["dasheng"], weights_only=True)
    half = {name: v.half() if v.is_floating_point() else v for name, v in content["model"].items()}
    torch.save({**content, "model": half}, tmp_path / "half.pt")
    encoder = load_encoder(tmp_path / "half.pt")
    assert {value.dtype for value in encoder.state_dict().values()} == {torch.float32, torch.int64}


def broken(forms, tmp_path: Path, change) -> Path:
    """The official file with `change` made to its weights."""
    content = torch.load(forms[0]["dasheng"], weights_only=True)
    change(content["model"])
    torch.save(content, tmp_path / "broken.pt")
    return tmp_path / "broken.pt"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("blocks.3.mlp.fc1.bias"), r"has no blocks\.3\.mlp\.fc1\.bias"),
        (
            lambda w: w.update({"cls_token": torch.zeros(1), "extra.weight": torch.zeros(1)}),
            r"cls_token, extra\.weight",
        ),
        (lambda w: w.update({"blocks.1.attn.qkv.weight": torch.zeros(3, 3)}), r"qkv\.weight \[3, 3\] instead of"),
        (lambda w: w.pop("patch_embed.proj.weight"), r"has no patch_embed"),
    ],
    ids=["missing", "unknown", "shape", "no patch"],
)
def test_weights_that_do_not_fit_are_listed(forms, tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        load_encoder(broken(forms, tmp_path, change))


class Harmful:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_pickle_that_would_run_code_is_refused(forms, tmp_path, capsys):
    torch.save({"model": {}, "config": Harmful()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="refused"):
        load_encoder(tmp_path / "a.pt")
    write_shards(lightning_content(forms[1]), tmp_path / "shards")
    (tmp_path / "shards/.metadata").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UserError, match="refused"):
        load_encoder(tmp_path / "shards")
    assert "this ran" not in capsys.readouterr().out


def test_an_interrupted_sharded_save_is_reported(forms, tmp_path):
    write_shards(lightning_content(forms[1]), tmp_path / "cut")
    (tmp_path / "cut/meta.pt").unlink()
    with pytest.raises(UserError, match=r"no meta\.pt"):
        load_encoder(tmp_path / "cut")


def damage(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    torch.save({"state_dict": {}, "global_step": 1}, tmp_path / "foreign.ckpt")
    (tmp_path / "empty").mkdir()
    for name, config in (
        ("bert", '{"model_type": "bert"}'),
        ("torn", "{"),
        ("bare", '{"model_type": "audio-encoder"}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    return {
        "text.pt": "damaged or not a checkpoint", "other.pt": "neither a checkpoint",
        "foreign.ckpt": "not from this project",
        "empty": "no config.json", "bert": "does not describe an encoder", "torn": "does not describe an encoder",
        "bare": "no model.safetensors", "absent.pt": "there is no checkpoint", "absent": "there is no checkpoint",
    }  # fmt: skip


def test_what_is_not_an_encoder_is_reported_in_one_sentence(tmp_path, capsys):
    for name, words in damage(tmp_path).items():
        assert export.main([str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
        message = capsys.readouterr().err
        assert words in message and message.count("\n") == 1, message
    assert not (tmp_path / "out").exists()


DOWNLOADS = {
    "empty": (b"", "is empty"),
    "page": (
        b"\xef\xbb\xbf\n<!DOCTYPE html><title>404</title>",
        "is a web page, not a checkpoint; download it again",
    ),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "is a Git LFS pointer; run git lfs pull",
    ),
}


@pytest.mark.parametrize("name", DOWNLOADS)
def test_a_failed_download_is_recognized(forms, tmp_path, name):
    """As a file, and as the weights or the decoder of a folder."""
    content, words = DOWNLOADS[name]
    for file in (tmp_path / "encoder.pt", tmp_path / "a/model.safetensors", tmp_path / "b/decoder.safetensors"):
        if file.parent != tmp_path:
            shutil.copytree(forms[0]["folder"], file.parent)
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"{re.escape(str(file))} {words}$"):
            load_encoder(file if file.parent == tmp_path else file.parent)


def test_a_run_of_several_folds_asks_for_one(forms, tmp_path):
    for fold in (2, 1):
        (tmp_path / f"kfold/fold-{fold}/checkpoints").mkdir(parents=True)
        shutil.copy(forms[0]["file"], tmp_path / f"kfold/fold-{fold}/checkpoints/last.ckpt")
    with pytest.raises(UserError, match=r"kfold is a run of several folds; name one of them: .*kfold/fold-1$"):
        load_encoder(tmp_path / "kfold")
    assert load_encoder(tmp_path / "kfold/fold-1").embed_dim == 192


def test_a_truncated_file_is_damaged(forms, tmp_path):
    for form, name in (("dasheng", "a.pt"), ("file", "b.ckpt")):
        data = forms[0][form].read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match="damaged"):
            load_encoder(tmp_path / name)
    copy = tmp_path / "folder"
    copy.mkdir()
    for file in forms[0]["folder"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    with pytest.raises(UserError, match="damaged"):
        load_encoder(copy)


@pytest.mark.parametrize(
    "form", ["folder", *(pytest.param(form, marks=pytest.mark.slow) for form in ("dasheng", "huggingface"))]
)
def test_a_full_disk_leaves_nothing_half_written(forms, tmp_path, monkeypatch, capsys, form):
    """Simulated by a limit on the file size, in a separate process."""
    program = (
        "import resource, signal, sys\nfrom src import export\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\nsys.exit(export.main(sys.argv[1:]))"
    )
    arguments = [str(forms[0]["file"]), "--format", form, "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "cannot write" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_missing_path_is_not_searched_on_the_hub(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    for name in ("runs/quickstart", "dasheng-tiny", "./dasheng-base", "hf://mispeech", "encoder"):
        with pytest.raises(UserError, match=f"there is no checkpoint {name}.*looked in"):
            load_encoder(name)
    with pytest.raises(UserError, match=r"a repository on the Hugging Face Hub is hf://runs/quickstart$"):
        load_encoder("runs/quickstart")


def test_a_hub_name_is_downloaded(forms, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(forms[0]["folder"])
    )
    assert load_encoder("hf://some.body/enc-1").embed_dim == 192 and asked == ["some.body/enc-1"]


def test_a_release_name_without_a_network(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def offline(name, **options):
        assert name == "mispeech/dasheng-base" and "model.safetensors" in options["allow_patterns"]
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"dasheng-base cannot be downloaded .*no route to host.*network"):
        load_encoder("dasheng-base")


def test_a_release_name_is_loaded_from_the_hub(forms, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(forms[0]["huggingface"]))
    assert torch.equal(load_encoder("dasheng-base").norm.weight, forms[1].encoder.norm.weight)
