"""Keys that are refused with the key to use instead: renamed ones (to be deleted after 0.3), and arguments of
Lightning's Trainer that the project sets itself."""

RENAMED = {
    "trainer.steps": "trainer.max_steps",
    "trainer.accumulate": "trainer.accumulate_grad_batches",
    "trainer.log_every_steps": "trainer.log_every_n_steps",
    "trainer.save_every_steps": "checkpoint.every_n_train_steps",
    "trainer.save_best": "checkpoint.save_top_k",
    "optimizer.learning_rate": "optimizer.lr",
    "optimizer.gradient_clip": "trainer.gradient_clip_val",
    "check.every_steps": "trainer.val_check_interval (in batches)",
    "classify.epochs": "trainer.max_epochs",
}

NOT_OFFERED = {  # argument of lightning.Trainer: what to use instead
    "logger": "set tracking.wandb; metrics.csv is always written",
    "callbacks": "list them under the top-level key callbacks",
    "min_epochs": "training ends at trainer.max_epochs, max_steps or max_time",
    "min_steps": "training ends at trainer.max_epochs, max_steps or max_time",
    "limit_test_batches": "test uses all of data.test; set a smaller data.test",
    "limit_predict_batches": "predict uses all of data.test; set a smaller data.test",
    "num_sanity_val_steps": "test the validation loop with trainer.fast_dev_run=true",
    "enable_checkpointing": "set checkpoint.save_last and checkpoint.save_top_k",
    "enable_progress_bar": "progress is shown as a bar on a terminal and as occasional lines elsewhere",
    "enable_model_summary": "--plan prints the size and cost of the model",
    "gradient_clip_algorithm": "gradients are clipped by norm",
    "inference_mode": "evaluation always runs without gradients",
    "use_distributed_sampler": "the data modules distribute the clips over the processes",
    "barebones": "increase trainer.log_every_n_steps",
    "plugins": "set trainer.precision and trainer.strategy",
    "sync_batchnorm": "batch-norm statistics are always computed over all processes",
    "reload_dataloaders_every_n_epochs": "clips are reshuffled every epoch",
    "default_root_dir": "set runs_folder",
    "enable_autolog_hparams": "settings are always logged",
    "model_registry": "set tracking.log_model",
}


def refusal(key: str) -> str | None:
    """Why `key` is refused and what to use instead; None for any other key."""
    if key in RENAMED:
        return f"{key} is now {RENAMED[key]}"
    section, _, name = key.partition(".")
    if section == "trainer" and name in NOT_OFFERED:
        return f"trainer.{name} is not available: {NOT_OFFERED[name]}"
    return None
