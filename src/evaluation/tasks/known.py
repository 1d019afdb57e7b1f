"""What is known about public tasks: the nineteen of HEAR, and the nine sets of the official README's k-NN table.

Numbers of clips, durations and metrics of HEAR are those of https://hearbenchmark.com/hear-tasks.html; records of the
X-ARES sets are from jimbozhang/xares, src/tasks. The official project averages 18 tasks of HEAR, without Beehive. Which
tasks form a domain is inferred: with these, the scores in its picture (metadata/hear_capabilities.png) give its means.
"""

from typing import Any, NamedTuple

HEAR = "https://hearbenchmark.com/hear-tasks.html"  # which links the archives at 48 kHz and at other rates
XARES = "https://zenodo.org/records/"


class Known(NamedTuple):
    """clips, seconds: number of clips, and their length. folds: "split" for train, valid and test. hub: the dataset on
    the Hugging Face hub, as `python -m src.evaluate` reads it. grid: changes of HEAR's MLP grid."""

    title: str
    domain: str
    metric: str
    folds: str
    clips: int
    seconds: str
    licence: str
    source: str = HEAR
    layout: str = "HEAR"
    hub: str | None = None
    grid: dict[str, list[Any]] = {}


HEAR_TASKS = {
    "dcase2016_task2": Known(
        "DCASE 2016 Task 2", "environment", "event_onset_200ms_fms", "split", 72, "120", "see source",
        grid={"check_val_every_n_epoch": [10]},
    ),
    "esc50": Known("ESC-50", "environment", "top1_acc", "5 folds", 2000, "5", "CC BY-NC 3.0"),
    "fsd50k": Known("FSD50K", "environment", "mAP", "split", 51185, "0.3 to 30", "CC BY 4.0"),
    "gunshot_triangulation": Known(
        "Gunshot Triangulation", "environment", "top1_acc", "7 folds", 88, "1.5", "see source"
    ),
    "beehive_states_fold0": Known("Beehive States, fold 0", "environment", "aucroc", "split", 576, "600", "see source"),
    "beehive_states_fold1": Known("Beehive States, fold 1", "environment", "aucroc", "split", 576, "600", "see source"),
    "tfds_crema_d": Known("CREMA-D", "speech", "top1_acc", "5 folds", 7438, "5", "ODbL 1.0"),
    "libricount": Known("LibriCount", "speech", "top1_acc", "5 folds", 5720, "5", "CC BY 4.0"),
    "speech_commands_5h": Known("Speech Commands 5 h", "speech", "top1_acc", "split", 22890, "1", "CC BY 4.0"),
    "speech_commands_full": Known("Speech Commands full", "speech", "top1_acc", "split", 100503, "1", "CC BY 4.0"),
    "vocal_imitation": Known("Vocal Imitations", "speech", "mAP", "3 folds", 5601, "11.26", "see source"),
    "vox_lingua_top10": Known("VoxLingua107 Top 10", "speech", "top1_acc", "5 folds", 972, "18.64", "CC BY 4.0"),
    "beijing_opera": Known("Beijing Opera Percussion", "music", "top1_acc", "5 folds", 236, "4.77", "see source"),
    "tfds_gtzan": Known("GTZAN Genre", "music", "top1_acc", "10 folds", 1000, "30", "none stated"),
    "tfds_gtzan_music_speech": Known("GTZAN Music Speech", "music", "top1_acc", "10 folds", 128, "30", "none stated"),
    "maestro": Known("MAESTRO 5 h", "music", "event_onset_50ms_fms", "5 folds", 185, "120", "CC BY-NC-SA 4.0"),
    "mridangam_stroke": Known("Mridangam Stroke", "music", "top1_acc", "5 folds", 6977, "0.81", "see source"),
    "mridangam_tonic": Known("Mridangam Tonic", "music", "top1_acc", "5 folds", 6977, "0.81", "see source"),
    "nsynth_pitch_5h": Known("NSynth Pitch 5 h", "music", "pitch_acc", "split", 5000, "4", "CC BY 4.0"),
    "nsynth_pitch_50h": Known("NSynth Pitch 50 h", "music", "pitch_acc", "split", 49060, "4", "CC BY 4.0"),
}  # fmt: skip

KNN_TASKS = {
    "ESC-50": Known(
        "ESC-50", "environment", "top1_acc", "5 folds", 2000, "5", "CC BY-NC 3.0", f"{XARES}14614287", "X-ARES",
        hub="hf://ashraq/esc50?label=category&fold=fold",
    ),
    "fsdkaggle2018": Known(
        "FSDKaggle18", "environment", "top1_acc", "split", 11073, "0.3 to 30", "see source",
        f"{XARES}14725117", "X-ARES",
    ),
    "nsynth_instrument": Known(
        "NSynth instrument", "music", "top1_acc", "split", 305979, "4", "see source", f"{XARES}14725174", "X-ARES"
    ),
    "speechcommandsv1": Known(
        "Speech Commands 1", "speech", "top1_acc", "split", 64727, "1", "see source", f"{XARES}14722647", "X-ARES"
    ),
    "speechcommandsv2": Known(
        "Speech Commands 2", "speech", "top1_acc", "split", 105829, "1", "CC BY 4.0",
        "https://huggingface.co/datasets/google/speech_commands", "Hugging Face",
        "hf://datasets/google/speech_commands@refs%2Fconvert%2Fparquet/v0.02/{split}/*.parquet?label=label",
    ),
    "urbansound8k": Known(
        "UrbanSound8K", "environment", "top1_acc", "10 folds", 8732, "up to 4", "see source",
        f"{XARES}14722683", "X-ARES",
    ),
    "voxceleb1": Known(
        "VoxCeleb1", "speech", "top1_acc", "split", 153516, "4 to 145", "see source", f"{XARES}14811963", "X-ARES"
    ),
    "ravdess": Known(
        "RAVDESS", "speech", "top1_acc", "4 folds", 1440, "3 to 5", "CC BY-NC-SA 4.0", f"{XARES}14722524", "X-ARES"
    ),
    "fluentspeechcommands": Known(
        "Fluent Speech Commands", "speech", "top1_acc", "split", 30043, "1 to 5",
        "Fluent Speech Commands Public License", f"{XARES}14722453", "X-ARES",
    ),
}  # fmt: skip

KNOWN = {**HEAR_TASKS, **KNN_TASKS}
