"""Published results, to show beside ours; percent as printed. They were not measured here.

From the README of https://github.com/RicherMans/Dasheng, retrieved on 2026-11-27. `HEAR_DOMAINS` are means over the
tasks of HEAR (MLP; 4 environment, 6 speech, 8 music). `KNN` is "features without parameterized training", the protocol
is not described there; X-ARES's (k = 10, cosine, not standardized) is by the same authors.
"""

SOURCE = "published: README of RicherMans/Dasheng"

HEAR_DOMAINS: dict[str, dict[str, float]] = {
    "Dasheng-Base": {"environment": 80.2, "speech": 72.5, "music": 84.0},
    "Dasheng-0.6B": {"environment": 82.4, "speech": 74.9, "music": 84.0},
    "Dasheng-1.2B": {"environment": 83.2, "speech": 75.7, "music": 84.9},
    "AudioMAE": {"environment": 61.7, "speech": 38.7, "music": 72.7},
    "Whisper-Base-V1": {"environment": 52.5, "speech": 73.1, "music": 69.1},
    "WavLM-Large": {"environment": 71.4, "speech": 72.2, "music": 65.0},
    "Wav2vec-large-100k-voxpopuli": {"environment": 62.5, "speech": 63.6, "music": 69.5},
    "Data2Vec-Audio-Large": {"environment": 41.1, "speech": 60.5, "music": 55.0},
}

_KNN_TASKS = (
    "ESC-50", "fsdkaggle2018", "nsynth_instrument", "speechcommandsv1", "speechcommandsv2", "urbansound8k", "voxceleb1",
    "ravdess", "fluentspeechcommands",
)  # fmt: skip
_KNN_ROWS: dict[str, tuple[float | None, ...]] = {
    "MSM-MAE": (2, 2.18, 20.58, 3.7, 1.5, 11.5, 0.12, 6.77, 1.85),
    "MelSpec": (18.4, 38.5, 35.5, 3.7, 1.5, 40.39, 5.26, 29.65, 9.97),
    "CED-Base": (95.35, 85.06, 74.41, 79.78, 62.66, 87.06, 7.02, 52.78, 16.61),
    "AudioMAE": (53.05, 43.38, 67.21, 56.87, 5.9, 58.18, 2.9, 28.68, 7.59),
    "WavLM-Large": (51.3, 60.87, None, 96.97, 92.69, 58.67, 28.54, 51.39, 83.28),
    "Wav2vec-large-100k-voxpopuli": (44, 59.5, 60.42, 80.86, 66.61, 59.84, 18.22, 45.76, 30.48),
    "Dasheng-Base": (61.9, 70.31, 70.02, 93.55, 86, 73.87, 34.21, 58.12, 52.33),
    "Dasheng-0.6B": (66.55, 72.06, 70.87, 93.36, 87.27, 75.92, 37.78, 61.81, 57.63),
    "Dasheng-1.2B": (68.55, 72.06, 71.19, 95.9, 90.9, 77.71, 39.39, 61.94, 62.38),
}
KNN: dict[str, dict[str, float]] = {
    encoder: {task: value for task, value in zip(_KNN_TASKS, values, strict=True) if value is not None}
    for encoder, values in _KNN_ROWS.items()
}
