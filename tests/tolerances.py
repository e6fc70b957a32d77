"""Every tolerance of the tests, with its reason. Test files hold none of their own.

The components of the tiny artifact's embeddings are about 0.14 in size, and two different golden texts have a
cosine of at most 0.9935: each bound here is far inside what a wrong result would give.
"""

GOLDEN_COSINE_MIN = 0.9998
"""int8 against PyTorch: 0.99993 at worst where the tiny artifact was made; the rest is for other CPUs."""

GOLDEN_MAX_ABS_DIFF = 0.009
"""int8 against PyTorch, largest component: 0.005 where the tiny artifact was made."""

ALONE_COSINE_MIN = 0.99999
"""A text alone against the same text in a batch: what the certificate's gate promises."""

UNIT_LENGTH_ATOL = 1e-5
"""Length of an embedding: float32 rounding over a few hundred components."""

SIMILARITY_ATOL = 1e-5
"""A product of unit vectors in float32 against the same in float64."""
