"""What only CUDA needs: provider options, graph capture and IO binding."""
