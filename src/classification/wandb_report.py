"""A classifier's test in W&B: scores, charts, a table of predictions, players of the worst mistakes, the report."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import wandb

from src.audio.decode import SAMPLE_RATE, AudioError
from src.data.labelled.splits import Split

MAX_ROWS = 10_000  # of a wandb.Table
_SECONDS = 10.0  # of a player


def log_report(
    run: Any, result: dict[str, Any], targets: np.ndarray, probabilities: np.ndarray, part: Split, page: str
) -> None:
    """Log the test of a classifier under `test/`.

    Args:
        run: the W&B run.
        result: of `report`.
        targets, probabilities: (n, C), of the clips `result["keys"]`.
        page: the report as HTML.
    """
    names = [each["name"] for each in result["classes"]]
    run.summary.update({"test_report": {name: result[name] for name in ("scores", "intervals", "floors")}})
    logged = {
        "test/predictions": predictions(result["keys"], targets, probabilities, names),
        "test/mistakes": mistakes(result.get("mistakes", []), part),
        "report": wandb.Html(page, inject=False),
    }
    run.log({name: value for name, value in logged.items() if value is not None})
    run.log(charts(targets, probabilities, names, "confusion" in result))


def charts(targets: np.ndarray, probabilities: np.ndarray, names: list[str], single: bool) -> dict[str, Any]:
    """Confusion matrix and precision-recall curve of each class; over all classes at once if a clip has several."""
    if not single:
        flat = probabilities.ravel()
        both = np.stack([1 - flat, flat], 1)
        title = "precision and recall over all classes"
        true = (targets > 0).ravel().astype(int)
        curve = wandb.plot.pr_curve(true, both, ["absent", "present"], classes_to_plot=[1], title=title)
        return {"test/precision_recall": curve}
    true, predicted = targets.argmax(1).tolist(), probabilities.argmax(1).tolist()
    matrix = wandb.plot.confusion_matrix(y_true=true, preds=predicted, class_names=names, title="confusion matrix")
    curves = wandb.plot.pr_curve(true, probabilities, names, title="precision and recall")
    return {"test/confusion": matrix, "test/precision_recall": curves}


def predictions(keys: Sequence[str], targets: np.ndarray, probabilities: np.ndarray, names: list[str]) -> wandb.Table:
    """Path, labels, most probable class, its probability, and whether it is right; the first `MAX_ROWS` clips."""
    rows = [
        [key, "; ".join(names[c] for c in np.flatnonzero(true)), names[best], float(row[best]), bool(true[best])]
        for key, true, row in zip(keys[:MAX_ROWS], targets > 0, probabilities, strict=False)
        for best in [int(row.argmax())]
    ]
    return wandb.Table(columns=["path", "label", "predicted", "probability", "right"], data=rows)


def mistakes(found: Sequence[dict[str, Any]], part: Split) -> wandb.Table | None:
    """The most confident mistakes, with players; None without mistakes."""
    index, rows = {key: i for i, key in enumerate(part.keys)}, []
    for each in found:
        caption = f"{each['label']}, predicted {each['predicted'] or 'nothing'}"
        try:
            samples = part.waveform(index[each["path"]], 0.0, _SECONDS)
        except AudioError:  # listed without a player
            player = None
        else:
            player = wandb.Audio(samples, SAMPLE_RATE, caption)
        rows.append([player, each["label"], each["predicted"], each["probability"], each["path"]])
    return wandb.Table(columns=["audio", "label", "predicted", "probability", "path"], data=rows) if rows else None
