"""dm_control's physics on MJX: kinematics, contacts, solver, as MuJoCo's C code does them."""
