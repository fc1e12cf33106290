"""Pictures of a trained agent's episodes; :mod:`pomcp_jax.rendering.film` has the one call."""
