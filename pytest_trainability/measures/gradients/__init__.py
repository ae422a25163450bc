"""Parameter gradients: norms, per-sample statistics, first optimizer steps, half precision."""
