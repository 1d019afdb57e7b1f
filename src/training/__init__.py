"""Learning: LightningModules, optimiser, callbacks, the plan before a run. Networks are handed in."""
