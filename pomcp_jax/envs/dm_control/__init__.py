"""dm_control's tasks on its original models; ``tasks`` has one file per domain."""
