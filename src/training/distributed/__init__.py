"""Training on several processes: launching them, parallel strategies, sharded checkpoints."""
