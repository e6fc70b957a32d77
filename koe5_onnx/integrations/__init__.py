"""Adapters for frameworks that embed through an interface of their own: one module each, thin.

    langchain                Koe5Embeddings
    llama_index              Koe5Embedding
    haystack                 Koe5TextEmbedder, Koe5DocumentEmbedder
    chroma                   Koe5EmbeddingFunction
    sentence_transformers    SentenceEncoder: its calls without it, and without PyTorch
    mteb                     Koe5Encoder

Each puts "query" and "passage" where its framework tells them apart, and shares one Embedder with all others
of the same artifact and options (shared_embedders.py). Importing this package loads none of them.
"""
