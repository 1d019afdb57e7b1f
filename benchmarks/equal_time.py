"""Encoders of equal training time: the official classes and recipe, the paper's objective with our code, our recipe.

    python -m benchmarks.equal_time POOL --tasks TASKS --out OUT --minutes 3 10 30 --seeds 2

POOL is a folder of audio to pretrain encoders of --size on (tiny; another size has an OUT of its own). A trial of each
recipe on all cores measures its speed, and a run has the number of steps that this speed gives in the minutes (so other
jobs disturb the trials only).
`python -m src.evaluate` scores all encoders in OUT on TASKS beside its floors, read at patches, block 6 and output; the
tables are in OUT/evaluation, the means over the minutes in OUT/curves.png, with the slope per doubling of the time.
Ours is also scored as it starts (0 minutes), with the batch-norm statistics of 256 crops of POOL. Speeds and finished
encoders are kept, so that an interrupted command continues, and recipes can be added one by one.
"""

import argparse
import csv
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from benchmarks.parity import official_mae
from benchmarks.report import machine_and_date
from src import evaluate, train
from src.config.files import load_config
from src.config.settings import DataConfig, SourceConfig
from src.data.pretraining.datamodule import PretrainDataModule
from src.encoders.save import save_encoder
from src.evaluation.embeddings import calibrate_norm
from src.models import SIZES
from src.pretraining.run import build_model, prepare_data
from src.training.optimizer import schedule

CONFIGS = Path(__file__).parent.parent / "configs"
TINY, PAPER = CONFIGS / "pretrain/tiny.yaml", CONFIGS / "pretrain/paper.yaml"
PRESETS = {"paper": ["--config", str(TINY), "--config", str(PAPER)], "ours": ["--config", str(TINY)]}
TRIAL_STEPS = 30


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", metavar="POOL")
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--minutes", type=float, nargs="+", default=[3, 10, 30])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--recipes", nargs="+", choices=["official", *PRESETS], default=["official", *PRESETS])
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    speeds = measure_speeds(options.recipes, options.size, options.pool, options.out)
    for minutes in options.minutes:
        for recipe in options.recipes:
            steps = max(TRIAL_STEPS, round(minutes * 60 * speeds[recipe]))
            for seed in range(options.seeds):
                finished = options.out / (f"{recipe}-{minutes:g}min-{seed}" + ".pt" * (recipe == "official"))
                if finished.exists():
                    continue
                if recipe == "official":
                    train_official(options.size, options.pool, finished, steps, seed)
                else:
                    name = f"unfinished-{finished.name}"
                    run = train_ours(recipe, options.size, options.pool, options.out, name, steps, seed)
                    run.rename(finished)
    for seed in range(options.seeds) if "ours" in options.recipes else ():
        if not (untrained := options.out / f"ours-0min-{seed}").exists():
            save_untrained(options.size, options.pool, untrained, seed)
    encoders = sorted(path for recipe in ("official", *PRESETS) for path in options.out.glob(f"{recipe}-*min-*"))
    words = [options.tasks, "--out", str(options.out / "evaluation"), "--method", "knn,linear",
             "--layers", "0+6+last", "--pooling", "mean_std", "--encoder"]  # fmt: skip
    if evaluate.main([*words, *map(str, encoders)]):
        sys.exit(1)
    draw(options.out / "evaluation" / "results.json", options.out / "curves.png")
    print(machine_and_date())


def measure_speeds(recipes: list[str], size: str, pool: str, out: Path) -> dict[str, float]:
    """Steps per second of each recipe, the start of a run included."""
    path = out / "speeds.json"
    speeds = json.loads(path.read_text()) if path.exists() else {}
    for recipe in (each for each in recipes if each not in speeds):
        if recipe == "official":
            seconds = train_official(size, pool, None, TRIAL_STEPS, seed=0)
            speeds[recipe] = len(seconds) / sum(seconds)
        else:
            trial = train_ours(recipe, size, pool, out, f"trial-{recipe}", TRIAL_STEPS)
            with open(trial / "metrics.csv", newline="", encoding="utf-8") as file:
                figures = [row["train/clips_per_second"] for row in csv.DictReader(file)]
            clips = float([each for each in figures if each][-1])
            speeds[recipe] = clips / OmegaConf.load(trial / "config.yaml").data.batch_size
        print(f"{recipe}: {speeds[recipe]:.3f} steps per second", flush=True)
        path.write_text(json.dumps(speeds))
    return speeds


def train_ours(recipe: str, size: str, pool: str, out: Path, name: str, steps: int, seed: int = 0) -> Path:
    """The folder of a run made by the command."""
    settings = [f"data.sources=[{{kind: folder, path: {pool}}}]", f"seed={seed}", f"trainer.max_steps={steps}",
                f"model.size={size}", f"optimizer.warmup_steps={steps // 10}", "trainer.val_check_interval=null",
                "tracking.wandb=null", f"runs_folder={out}", f"name={name}", "trainer.log_every_n_steps=5"]  # fmt: skip
    if train.main(["fit", *PRESETS[recipe], *settings]):
        sys.exit(1)
    return max(out.glob(f"{name}*"), key=os.path.getmtime)  # an earlier one was interrupted


def save_untrained(size: str, pool: str, out: Path, seed: int) -> None:
    settings = [f"data.sources=[{{kind: folder, path: {pool}}}]", f"seed={seed}", f"model.size={size}"]
    config = load_config([str(TINY)], settings)
    encoder = build_model(config).encoder
    calibrate_norm(encoder, prepare_data(config).examples(256))
    save_encoder(encoder, out)


def train_official(size: str, pool: str, out: Path | None, steps: int, seed: int) -> list[float]:
    """Seconds of each step of the official network with the settings of the official `MAEConfig`: padded crops of 10 s,
    batches of 32, AdamW at 3e-4, 3 % of the steps warm-up, cosine to a hundredth. Crops come from our loader, which
    costs it nothing."""
    torch.manual_seed(seed)
    data = PretrainDataModule(
        DataConfig(sources=[SourceConfig(path=pool)], batch_size=32, pad_to_crop=True, resample=True), seed
    )
    data.setup()
    network = official_mae(size).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4, weight_decay=0.01)
    seconds = []
    start = time.monotonic()
    for step, batch in zip(range(steps), data.train_dataloader(), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = 3e-4 * schedule(step, max(TRIAL_STEPS, round(0.03 * steps)), steps, 0.01)
        network(batch["waveform"], return_loss=True).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.monotonic() - start)
        start = time.monotonic()
    if out:
        shape = SIZES[size].encoder
        config = {"embed_dim": shape.width, "depth": shape.depth, "num_heads": shape.num_heads}
        torch.save({"model": network.encoder.state_dict(), "config": config}, out)
    return seconds


def draw(results: Path, picture: Path) -> None:
    """Means over tasks by minutes, a panel per method, with the best floor."""
    rows = [row for row in json.loads(results.read_text(encoding="utf-8"))["rows"] if row["score"] is not None]
    figure = Figure(figsize=(9, 4))
    for axis, method in zip(figure.subplots(1, 2), ("knn", "linear"), strict=True):
        floors: dict[str, list[float]] = defaultdict(list)
        curves: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row["method"] == method and row["floor"]:
                floors[row["encoder"]].append(row["score"])
            elif row["method"] == method:
                recipe, minutes, _ = Path(row["encoder"]).name.split("-")
                curves[recipe][float(minutes.removesuffix("min"))].append(row["score"])
        for recipe, points in curves.items():  # each point is the mean over tasks and seeds
            means = {each: float(np.mean(points[each])) for each in sorted(points)}
            trained = {each: mean for each, mean in means.items() if each > 0}
            slope = np.polyfit(np.log2(list(trained)), list(trained.values()), 1)[0] if len(trained) > 1 else None
            label = recipe if slope is None else f"{recipe}, {slope:+.3f} per doubling"
            axis.plot(list(means), list(means.values()), "o-", label=label)
        axis.axhline(max(map(np.mean, floors.values())), color="0.5", linestyle="--", label="best floor")
        minutes = sorted({each for points in curves.values() for each in points})
        axis.set_xscale("symlog", linthresh=1)
        axis.set(xlim=(-0.3, 1.3 * max(minutes)), xlabel="minutes", title=f"{method}, mean accuracy over tasks")
        axis.set_xticks(minutes, [f"{each:g}" for each in minutes])
        axis.minorticks_off()
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15))
    figure.savefig(picture, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
