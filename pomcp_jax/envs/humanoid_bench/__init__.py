"""HumanoidBench's locomotion tasks (arXiv 2403.10506) on the model files of a user's checkout."""
