"""The systems that are measured against each other: one file a library, one process a contender."""
