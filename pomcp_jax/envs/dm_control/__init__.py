"""dm_control's domains and tasks on its own models: one file a domain in ``tasks``."""
