"""The demo's validation clips written as each kind of source."""

import io
import tarfile
from pathlib import Path

import pyarrow.parquet as pq

DEMO = Path(__file__).parents[2] / "data" / "demo"


def write_sources(folder: Path) -> dict[str, str]:
    """A `data.sources` entry, as YAML, for each kind: huggingface, streaming, folder, shards (three tars)."""
    table = pq.read_table(next((DEMO / "data").glob("validation-*.parquet")))
    clips = [row["bytes"] for row in table.column("audio").to_pylist()]
    (folder / "clips").mkdir()
    for number, data in enumerate(clips):
        (folder / "clips" / f"{number:04}.opus").write_bytes(data)
    for shard in range(3):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as tar:
            for number in range(shard, len(clips), 3):
                member = tarfile.TarInfo(f"{number:04}.opus")
                member.size = len(clips[number])
                tar.addfile(member, io.BytesIO(clips[number]))
    demo = f"kind: huggingface, path: '{DEMO}', split: validation"
    return {
        "huggingface": f"{{{demo}}}",
        "streaming": f"{{{demo}, streaming: true}}",
        "folder": f"{{kind: folder, path: '{folder / 'clips'}'}}",
        "shards": f"{{kind: shards, path: '{folder}/{{000..002}}.tar'}}",
    }
