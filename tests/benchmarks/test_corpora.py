import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import COMMIT, REPOSITORY, serving, settings

from benchmarks.corpora import KNOWN, load
from koe5_onnx import InputError

CHECKOUT = Path(__file__).resolve().parents[2]
AUTORAG = CHECKOUT.parent / "shared/data/autorag_ko"
PASSAGES = [{"_id": name, "text": name * 3} for name in "abcdefgh"]
QUERIES = [{"_id": f"q{name}", "text": name} for name in "abcd"]
QRELS = [("qa", "a", 1), ("qb", "b", 1), ("qc", "c", 1), ("qd", "d", 1), ("qb", "h", 1)]

FETCH = """
import dataclasses, sys
from benchmarks import corpora
from koe5_onnx import Koe5Error

known = dataclasses.replace(corpora.KNOWN["autorag"], repository=sys.argv[1], revision="v1")
corpora.KNOWN = {"autorag": known}
try:
    dataset = corpora.load("autorag")
    print(dataset.name, dataset.source, len(dataset.queries), len(dataset.passages))
except Koe5Error as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def folder(write_beir):
    return write_beir(QUERIES, PASSAGES, QRELS)


def test_a_folder_is_loaded_by_its_path(folder):
    dataset = load(str(folder))
    assert (dataset.name, dataset.source) == ("beir", str(folder))
    assert dataset.queries == ["a", "b", "c", "d"]
    assert dataset.passages == [name * 3 for name in "abcdefgh"]


def test_a_known_dataset_in_a_folder_keeps_its_title(folder):
    assert load("autorag", folder).name == "AutoRAG-benchmark"


def test_the_hash_covers_every_text_and_judgment(folder, write_beir):
    same = write_beir(QUERIES, PASSAGES, QRELS, name="same")
    other = write_beir(QUERIES, PASSAGES, QRELS[:-1], name="other")
    assert load(str(folder)).sha256 == load(str(same)).sha256
    assert load(str(folder)).sha256 != load(str(other)).sha256


def test_a_limit_keeps_relevant_passages(folder):
    dataset = load("autorag", folder, limit=2)
    assert list(dataset.contents.queries) == ["qa", "qb"]
    assert list(dataset.contents.passages) == ["a", "b", "c", "d", "h"]
    assert dataset.contents.relevant == {"qa": {"a": 1}, "qb": {"b": 1, "h": 1}}
    assert dataset.name == "AutoRAG-benchmark, first 2 queries"
    with pytest.raises(InputError, match="limit is 1"):
        load(str(folder), limit=1)


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match=r"neither a folder nor a known dataset\. Use one of autorag"):
        load("beir/nfcorpus")


def test_two_folders_are_refused(folder):
    with pytest.raises(InputError, match=r"is not a known dataset.*one of autorag.*or pass only a folder"):
        load(str(folder), folder)


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ([("qa", "a", 1), ("qb", "z", 1)], "passage 'z' of the query 'qb' is not in the corpus"),
        ([("qa", "a", 1)], "1 queries with a relevant passage and 8 passages, expected at least 2"),
        ([], "0 queries"),
    ],
)
def test_missing_judgments_or_passages_are_rejected(write_beir, qrels, message):
    with pytest.raises(InputError, match=message):
        load(str(write_beir(QUERIES, PASSAGES, qrels)))


def fetch(hub, tmp_path, repository=REPOSITORY):
    env = {**os.environ, **settings(hub.endpoint, tmp_path / "hf")}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CHECKOUT), *sys.path]))
    command = [sys.executable, "-c", FETCH, repository]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_only_dataset_files_are_downloaded(folder, tmp_path):
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with serving({**files, "pictures/large.png": b"not wanted"}) as hub:
        assert fetch(hub, tmp_path) == f"AutoRAG-benchmark {REPOSITORY}@{COMMIT} 4 8"
        assert sorted(hub.fetched) == sorted(files)
        assert fetch(hub, tmp_path, "nobody/nothing").startswith("HubError: cannot download nobody/nothing")
        assert fetch(hub, tmp_path, "nobody/nothing").endswith(
            "For autorag, pass the folder with --data FOLDER."
        )


@pytest.mark.skipif(not AUTORAG.is_dir(), reason=f"no dataset in {AUTORAG}")
def test_the_real_autorag_dataset():
    pytest.importorskip("pyarrow")
    dataset = load("autorag", AUTORAG)
    assert (len(dataset.queries), len(dataset.passages)) == (114, 720)
    assert all(len(judged) == 1 for judged in dataset.contents.relevant.values())
    assert dataset.name == KNOWN["autorag"].title
