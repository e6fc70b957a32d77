"""koe5-onnx embed reads text and JSON lines, writes .npy and .jsonl, and leaves no output after an error."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from koe5_onnx import Embedder, TruncationWarning, cli
from koe5_onnx.engine.session import Session
from koe5_onnx.text.encoding import likely


@pytest.fixture
def embed(artifact_path: Path, tmp_path: Path) -> Callable[..., int]:
    """Return a function that runs `koe5-onnx embed` on a file in tmp_path, with additional arguments."""

    def run(name: str, output: str = "out.npy", *more: str, prompt: str = "none") -> int:
        source = name if name == "-" else str(tmp_path / name)
        target = str(tmp_path / output)
        usual = [
            "--artifact",
            str(artifact_path),
            "--threads",
            "1",
            "--prompt-name",
            prompt,
            "--output",
            target,
        ]
        return cli.main(["embed", source, *usual, *more])

    return run


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, bytes], None]:
    return lambda name, content: (tmp_path / name).write_bytes(content) and None


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read_jsonl(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        pytest.param("하나\n둘\n", ["하나", "둘"], id="two lines"),
        pytest.param("하나\n둘", ["하나", "둘"], id="no newline at the end"),
        pytest.param("하나\r\n둘\r\n", ["하나", "둘"], id="CRLF"),
        pytest.param("\ufeff하나\n\ufeff둘\n", ["하나", "\ufeff둘"], id="byte order mark at the start only"),
        pytest.param("\n하나\n\n", ["", "하나", ""], id="empty lines are texts"),
        pytest.param("", [], id="empty file"),
        pytest.param("\ufeff", [""], id="nothing but a byte order mark"),
        pytest.param(
            "하나\u2028둘\x0b셋\x0c넷\x85다섯\n여섯",
            ["하나\u2028둘\x0b셋\x0c넷\x85다섯", "여섯"],
            id="other breaks",
        ),
        pytest.param("하나\r둘\n", ["하나\r둘"], id="CR alone"),
    ],
)
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_lines(embed, put, embedder, tmp_path, monkeypatch, content, texts, source):
    if source == "stdin":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        assert embed("-", prompt="passage") == 0
    else:
        put("in.txt", content.encode())
        assert embed("in.txt", prompt="passage") == 0
    embeddings = np.load(tmp_path / "out.npy")
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, embedder.encode_passages(texts))


@pytest.mark.parametrize("prompt", ["query", "passage", "none"])
def test_prompts(embed, put, embedder, tmp_path, prompt):
    put("in.txt", "가나다".encode())
    assert embed("in.txt", prompt=prompt) == 0
    expected = embedder.encode(["가나다"], None if prompt == "none" else prompt)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_jsonl_in_and_out(embed, put, embedder, tmp_path, text_of):
    texts = ["가나", "", "다\n라 \u2028", text_of(600)]
    put("in.jsonl", "".join(json.dumps({"id": 7, "body": text}) + "\n" for text in texts).encode())
    assert embed("in.jsonl", "out.jsonl", "--text-column", "body") == 0
    records = read_jsonl(tmp_path / "out.jsonl")
    assert [record["index"] for record in records] == [0, 1, 2, 3]
    assert [record["tokens"] for record in records] == embedder.count_tokens(texts).tolist()
    assert [record["truncated"] for record in records] == [False, False, False, True]
    with pytest.warns(TruncationWarning):
        expected = embedder.encode(texts)
    # The round trip is exact.
    np.testing.assert_array_equal(np.array([record["embedding"] for record in records], np.float32), expected)


def test_the_default_field_is_text(embed, put, embedder, tmp_path):
    put("in.jsonl", '\ufeff{"text": "가"}\r\n{"text": "나"}'.encode())
    assert embed("in.jsonl") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), embedder.encode(["가", "나"]))


WIDE = ["U+0A41 \u0a41", "U+010A \u010a", "", "\u0a0a", "뷁 끝"]
"""Texts of which some have characters whose UTF-16 bytes include 10, the byte of a line feed."""


@pytest.mark.parametrize(
    ("written", "encoding"),
    [
        ("cp949", "cp949"),
        ("cp949", "auto"),
        ("euc-kr", "EUC-KR"),
        ("utf-16", "utf-16"),
        ("utf-16", "auto"),
        ("utf-16-le", "utf-16"),
        ("utf-16-be", "auto"),
        ("utf-8-sig", "auto"),
        ("utf-8", "auto"),
    ],
)
@pytest.mark.parametrize("name", ["in.txt", "-"])
def test_encodings(embed, put, embedder, tmp_path, monkeypatch, written, encoding, name):
    texts = ["이름과 나이", "", "홍길동 30", "a"]
    if written.startswith("utf"):
        texts += WIDE
    content = "\r\n".join(texts).encode(written)
    put("in.txt", content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert embed(name, "out.npy", "--encoding", encoding) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), embedder.encode(texts))


@pytest.mark.parametrize("encoding", ["klingon", "utf-7", "iso2022_kr", "utf-32", "base64"])
def test_encodings_that_will_not_do(embed, put, capsys, encoding):
    put("in.txt", b"a")
    assert embed("in.txt", "out.npy", "--encoding", encoding) == 1
    assert f"the encoding is '{encoding}': expected auto, utf-8, cp949" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("gbk", "这是一个中文句子"),
        ("gbk", "北京是中华人民共和国的首都，人口两千多万。"),
        ("big5", "這是中文"),
        ("shift_jis", "これは日本語です"),
        ("euc_jp", "これは日本語の文章です。東京都の人口は約1400万人である。"),
        ("latin-1", "naïve café"),
    ],
)
def test_other_encodings_are_not_cp949(encoding, text):
    assert likely(f"1,{text}\n".encode(encoding)) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.txt", b"ok\n\xb0\xa1\n", r"in.txt, line 2: byte 1 (0xb0) is not UTF-8"),
        ("in.txt", b"ok\n\xb0\xa1\n", r"is not UTF-8. Pass --encoding cp949, which the file probably has"),
        ("in.txt", "가".encode("utf-16"), r"in.txt, line 1: byte 1 (0xff) is not UTF-8"),
        (
            "in.txt",
            "ab\nc\n".encode("utf-16-le"),
            r"line 1: byte 2 (0x00) is not UTF-8. Pass --encoding utf-16-le",
        ),
        ("in.txt", b"na\xefve\n", r"line 1: byte 3 (0xef) is not UTF-8. Convert the file"),
        ("in.jsonl", b'{"text": "ok"}\n{"text": \n', "in.jsonl, line 2: not JSON"),
        ("in.jsonl", b'{"text": "ok"}\n\n', "in.jsonl, line 2: not JSON"),
        ("in.jsonl", b'{"n": ' + b"1" * 5000 + b"}", "in.jsonl, line 1: not JSON"),
        ("in.jsonl", b"[" * 100_000, "in.jsonl, line 1: not JSON"),
        ("in.jsonl", b'["text"]', "in.jsonl, line 1: expected a JSON object, found list"),
        (
            "in.jsonl",
            b'{"body": "x"}',
            "in.jsonl, line 1: no field 'text', only ['body']. Name one with --text-column",
        ),
        ("in.jsonl", b'{"text": null}', "in.jsonl, line 1: field 'text' is NoneType, expected a string"),
        ("in.jsonl", b'{"text": "\\ud83d"}', "in.jsonl, line 1: the escape \\ud83d is a lone surrogate"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(
    embed, put, tmp_path, capsys, monkeypatch, name, content, message
):
    monkeypatch.setattr(Embedder, "open", None)
    put(name, content)
    assert embed(name) == 1
    error = capsys.readouterr().err
    assert error.startswith("koe5-onnx: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert files(tmp_path) == {name}


def test_stdin_is_named_too(embed, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert embed("-") == 1
    assert "stdin, line 1: byte 1 (0xff)" in capsys.readouterr().err


def test_an_empty_encoding_is_unknown(embed, put, capsys):
    put("in.txt", b"text")
    assert embed("in.txt", "out.npy", "--encoding", "") == 1
    assert "''" in capsys.readouterr().err


def test_denied_access_comes_with_advice(embed, put, capsys, monkeypatch):
    def denied(path, _mode):
        raise PermissionError(13, "Permission denied", str(path))

    put("in.txt", b"text")
    monkeypatch.setattr(Path, "open", denied)
    assert embed("in.txt") == 1
    assert "in.txt: Permission denied. Check the owner and the mode" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        ("absent.txt", "out.npy", "absent.txt: No such file or directory"),
        ("in.txt", "absent/out.npy", "absent of the output does not exist. Create it first"),
        ("in.txt", "folder.npy", "folder.npy is a folder"),
        ("in.jsonl", "in.jsonl", "in.jsonl is the input"),
    ],
)
def test_invalid_files_are_rejected(embed, put, tmp_path, capsys, monkeypatch, name, output, message):
    monkeypatch.setattr(Embedder, "open", None)
    put("in.txt", b"text")
    put("in.jsonl", b'{"text": "text"}')
    (tmp_path / "folder.npy").mkdir()
    before = files(tmp_path)
    assert embed(name, output) == 1
    assert message in capsys.readouterr().err
    assert files(tmp_path) == before
    assert (tmp_path / "in.jsonl").read_bytes() == b'{"text": "text"}'


@pytest.mark.parametrize(
    "change",
    [
        {"name": "in.csv"},
        {"name": "in"},
        {"output": "out.parquet"},
        {"more": ["--text-column", "body"]},
        {"more": ["--threads", "two"]},
        {"more": ["--overflow", "drop"]},
        {"prompt": "document"},
        {"more": ["--prompt", "query: "]},
    ],
)
def test_wrong_usage(embed, put, capsys, change):
    put("in.txt", b"text")
    arguments = {"name": "in.txt", "output": "out.npy", "more": [], "prompt": "none", **change}
    with pytest.raises(SystemExit) as caught:
        embed(arguments["name"], arguments["output"], *arguments["more"], prompt=arguments["prompt"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: koe5-onnx embed")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--device", "gpu"], "device is 'gpu': expected 'cpu', 'cuda' or 'cuda:N'"),
        (["--threads", "0"], "threads is 0: expected 1 or more"),
        (["--max-batch-tokens", "0"], "max_batch_tokens is 0: expected 1 or more"),
        (["--artifact", "no-such-folder"], "no-such-folder does not exist"),
    ],
)
def test_options_that_cannot_be_used(embed, put, tmp_path, capsys, more, message):
    put("in.txt", b"text")
    assert embed("in.txt", "out.npy", *more) == 1
    assert f"koe5-onnx: error: {message}" in capsys.readouterr().err
    assert files(tmp_path) == {"in.txt"}


def test_too_long_a_text(embed, put, tmp_path, capsys, text_of):
    put("in.txt", f"{text_of(511)}\n{text_of(3)}\n".encode())
    assert embed("in.txt", "out.npy", "--overflow", "error") == 1
    assert "1 of 2 texts have more than 512 tokens" in capsys.readouterr().err
    assert files(tmp_path) == {"in.txt"}
    assert embed("in.txt", "out.npy") == 0
    warning, summary = capsys.readouterr().err.splitlines()
    assert warning.startswith("koe5-onnx: warning: 1 of 2 texts have more than 512 tokens")
    assert summary.startswith("2 texts, 517 tokens in ")
    assert "1 truncated at 512" in summary
    assert embed("in.txt", "out.npy", "--overflow", "average") == 0
    assert capsys.readouterr().err.startswith("2 texts, 518 tokens in ")


def test_a_literal_prompt(put, embedder, artifact_path, tmp_path):
    put("in.txt", "나다".encode())
    out = tmp_path / "out.npy"
    arguments = [tmp_path / "in.txt", "--artifact", artifact_path, "--prompt", "가", "--output", out]
    assert cli.main(["embed", *map(str, arguments)]) == 0
    np.testing.assert_allclose(np.load(out), embedder.encode(["가나다"]), atol=1e-6, rtol=0)


def test_a_double_prompt_is_one_line(embed, put, capsys):
    put("in.txt", b"query: what")
    assert embed("in.txt", prompt="query") == 0
    first, _summary = capsys.readouterr().err.splitlines()
    assert first.startswith("koe5-onnx: warning: 1 of 1 texts already start with 'query: '")


def test_an_existing_output_is_replaced(embed, put, tmp_path):
    put("in.txt", b"text")
    put("kept.npy", b"old")
    (tmp_path / "out.npy").symlink_to("kept.npy")
    assert embed("in.txt") == 0
    assert (tmp_path / "out.npy").is_symlink()
    assert np.load(tmp_path / "kept.npy").shape[0] == 1
    assert files(tmp_path) == {"in.txt", "out.npy", "kept.npy"}


def interrupt_by(action: Callable[[], None], folder: Path) -> Callable[..., np.ndarray]:
    """Return a replacement for `Session.run` that calls `action`, which must end the command."""

    def run(self, *arrays):
        assert any(name.endswith(".partial") for name in files(folder))
        action()
        raise AssertionError("continued after the interrupt")

    return run


def ctrl_c() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_ctrl_c_leaves_the_old_output(embed, put, tmp_path, capsys, monkeypatch):
    put("in.txt", b"text")
    put("out.npy", b"old")
    monkeypatch.setattr(Session, "run", interrupt_by(ctrl_c, tmp_path))
    assert embed("in.txt") == 130
    assert capsys.readouterr().err == "koe5-onnx: interrupted\n"
    assert files(tmp_path) == {"in.txt", "out.npy"}
    assert (tmp_path / "out.npy").read_bytes() == b"old"


def test_sigterm_leaves_nothing(embed, put, tmp_path, monkeypatch):
    put("in.txt", b"text")
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Session, "run", interrupt_by(terminate, tmp_path))
    with pytest.raises(SystemExit) as caught:
        embed("in.txt")
    assert caught.value.code == 143
    assert files(tmp_path) == {"in.txt"}
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_full_disk(embed, put, tmp_path, capsys, monkeypatch):
    def fsync(descriptor):
        raise OSError(28, "No space left on device")

    put("in.txt", b"text")
    monkeypatch.setattr(os, "fsync", fsync)
    assert embed("in.txt") == 1
    assert capsys.readouterr().err == f"koe5-onnx: error: {tmp_path / 'out.npy'}: No space left on device\n"
    assert files(tmp_path) == {"in.txt"}


def test_progress_on_a_terminal_only(embed, put, capsys, monkeypatch):
    put("in.txt", b"text\n" * 300)
    assert embed("in.txt") == 0
    assert "tokens/s]" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert embed("in.txt") == 0
    assert "tokens/s]" in capsys.readouterr().err
