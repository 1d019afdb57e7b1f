"""Tasks in our layout: a folder of audio with a labels.csv (`filename,label` and `split` or `fold`).

With columns `onset` and `offset`, in seconds, it is a timestamp task. Class folders below train, valid and test folders
are read, too.
"""

from pathlib import Path

from src.data.sources.annotations import in_order
from src.data.sources.folder import FolderSource
from src.errors import UserError
from src.evaluation.problem import Event, Kind
from src.evaluation.tasks.task import EVENT_METRICS, SCENE_METRICS, Clip, Labels, Task, domain_of


def read_labels(path: Path) -> Task:
    """Raises: UserError: a wrong labels.csv; neither split nor fold; no labels."""
    source = FolderSource(str(path))
    annotated = [(i, a) for i in range(len(source)) if (a := source.annotation(i))]
    if not annotated:
        raise UserError(f"{path} has no labels; a task needs a labels.csv with filename, label and split or fold")
    folds = in_order({str(a.fold) for _, a in annotated if a.fold is not None})
    if not folds and annotated[0][1].split is None:
        raise UserError(f"{path}: the clips have neither split nor fold; add a column to labels.csv")
    timestamps = any(a.events for _, a in annotated)
    index = {name: number for number, name in enumerate(source.class_names)}
    labels = [
        Labels(
            str(a.fold) if folds else str(a.split),
            tuple(index[label] for label in a.labels),
            tuple(Event(e.onset, e.offset, index[e.label]) for e in a.events),
            a.group,
        )
        for _, a in annotated
    ]
    multilabel = timestamps or any(len(each.classes) > 1 for each in labels)
    kind: Kind = "multilabel" if multilabel else "multiclass"
    without = len(source) - len(annotated)
    return Task(
        name=path.resolve().name,
        layout="labels.csv",
        clips=[Clip(source, i) for i, _ in annotated],
        labels=labels,
        class_names=source.class_names,
        kind=kind,
        metrics=EVENT_METRICS if timestamps else SCENE_METRICS[kind],
        timestamps=timestamps,
        folds=folds,
        domain=domain_of(path.resolve().name),
        notes=[f"{without} files without a label are left out"] if without else [],
    )
