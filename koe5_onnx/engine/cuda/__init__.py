"""CUDA support: provider options, graph capture and IO binding."""
