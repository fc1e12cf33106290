"""Launchers of suites: processes of this machine, SLURM, Ray."""
