"""One file per dm_control domain; each has ``make(task, backend) -> Task``."""
