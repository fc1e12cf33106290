"""Rigid-body physics on MJX, with kinematics, contacts and solver as in MuJoCo's C code."""
