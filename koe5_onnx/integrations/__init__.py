"""Integrations with frameworks, one module each.

    langchain                Koe5Embeddings
    llama_index              Koe5Embedding
    haystack                 Koe5TextEmbedder, Koe5DocumentEmbedder
    chroma                   Koe5EmbeddingFunction
    sentence_transformers    SentenceEncoder: methods of SentenceTransformer, without PyTorch
    mteb                     Koe5Encoder

The integrations add the prompt "query" or "passage" if the framework distinguishes queries from documents.
Components with the same artifact and options share one Embedder (shared_embedders.py). Importing this package
does not import its modules.
"""
