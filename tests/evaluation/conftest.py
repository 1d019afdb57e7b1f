"""Real features for evaluation methods: log-mel statistics of a quarter of the demo."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from src.evaluation.embeddings import mel_statistics
from src.evaluation.problem import Part, Problem

DEMO = Path(__file__).parents[2] / "data" / "demo" / "data"


def demo_part(split: str) -> Part:
    rows = pq.read_table(next(DEMO.glob(f"{split}-*.parquet"))).to_pylist()[::4]
    waveforms = [soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32", frames=16000)[0] for row in rows]
    return Part(mel_statistics(waveforms).astype(np.float32), np.array([row["label"] for row in rows]))


@pytest.fixture(scope="package")
def demo_problem() -> Problem:
    """One label of 13 a clip."""
    parts = (demo_part(split) for split in ("train", "validation", "test"))
    return Problem(*parts, "multiclass", 13, ["top1_acc", "mAP"])


@pytest.fixture(scope="package")
def tagging_problem(demo_problem) -> Problem:
    """Three labels that a clip may have together: speech, percussion, a low number of its class."""

    def tags(part: Part) -> Part:
        labels = part.targets
        return Part(part.features, np.stack([np.isin(labels, (6, 7)), labels < 3, labels < 8], 1).astype(np.float32))

    parts = (tags(part) for part in (demo_problem.train, demo_problem.valid, demo_problem.test))
    return Problem(*parts, "multilabel", 3, ["mAP", "aucroc"])
