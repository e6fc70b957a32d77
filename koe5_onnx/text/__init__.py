"""From texts to token ids: prompts, Unicode forms and the tokenizer."""
