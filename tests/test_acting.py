"""What acting refuses, under x64 too, and derivatives of the world model in both modes."""

OBS, A, N = 5, 2, 3
