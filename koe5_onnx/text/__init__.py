"""Prompts, Unicode normalization and tokenization."""
