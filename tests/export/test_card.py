import json

import numpy as np
import pytest
from koe5_export.model_card import read_card, tolerance

from koe5_onnx import InputError

CARD = """# A model

```python
print("not this block")
```

```python
from sentence_transformers import SentenceTransformer

sentences = [
    'query: 질문, "따옴표"와 [괄호]',
    "passage: 첫째 답",
    "passage: 둘째 답",
]
embeddings = model.encode(sentences)
print(embeddings.shape)
# [3, 1024]

similarities = model.similarity(embeddings, embeddings)
print(similarities)
# tensor([[1.0000, 0.6721, 0.3897],
#         [0.6721, 1.0000, 0.3740],
#         [0.3897, 0.3740, 1.0000]])
```
"""
MATRIX = [[1.0, 0.6721, 0.3897], [0.6721, 1.0, 0.374], [0.3897, 0.374, 1.0]]


def test_reads_sentences_and_matrix_of_a_markdown_card(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(CARD, encoding="utf-8")
    card = read_card(file)
    assert card.sentences[0] == 'query: 질문, "따옴표"와 [괄호]'
    assert len(card.sentences) == 3
    assert card.decimals == 4
    np.testing.assert_array_equal(card.similarity, MATRIX)


def test_reads_the_same_from_json_and_keeps_printed_zeros(tmp_path):
    file = tmp_path / "card.json"
    text = json.dumps({"sentences": ["a", "b"], "similarity": "HERE"}).replace(
        '"HERE"', "[[1.00, 0.50], [0.50, 1.00]]"
    )
    file.write_text(text)
    card = read_card(file)
    assert card.decimals == 2
    np.testing.assert_array_equal(card.similarity, [[1, 0.5], [0.5, 1]])


@pytest.mark.parametrize(
    "text",
    [
        "no code at all",
        CARD.replace("# tensor", "tensor"),
        CARD.replace("    'query", "    x, 'query"),
        CARD.replace(", 0.3740]", "]"),
    ],
)
def test_rejects_a_card_without_a_matching_matrix(tmp_path, text):
    file = tmp_path / "README.md"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"README\.md"):
        read_card(file)


def test_fp32_must_agree_to_the_printed_decimals():
    assert 0.00005 < tolerance("fp32", 4) < 0.0001
    assert tolerance("int8", 4) > tolerance("fp32", 4)
