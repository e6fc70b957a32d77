"""How fast, how late, how large, how soon: one file a question, and what they share."""
