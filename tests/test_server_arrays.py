"""Tasks that were learned from arrays are asked about arrays over HTTP, checked before they are read."""

import io
import json
import pickle
import shutil

import numpy as np
import pytest
import served
from serving import PlainBank, ask, error, running

import cwps_jax as cwps
from cwps_jax.server.limits import Limits

NPY, JSON = {"content-type": "application/x-npy"}, {"content-type": "application/json"}
INPUTS = np.random.default_rng(0).normal(100, 50, (3, 12, 12, 3)).astype(np.float32)
WHOLE = INPUTS.clip(0, 255).astype(np.uint8)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(text: str) -> bytes:
    """Returns the beginning of a .npy file whose header says so."""
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode("latin-1")


@pytest.fixture(scope="module")
def pool(served_pool, tmp_path_factory):
    """`digits` takes float32 arrays, `earlier` uint8 ones, `negative` pictures."""
    folder = tmp_path_factory.mktemp("arrays") / "pool"
    shutil.copytree(served_pool.folder, folder)
    index = folder / "index.json"
    values = json.loads(index.read_text())
    records = {version["task"]: version["record"] for version in values["versions"]}
    records["earlier"]["learned_with"] = json.loads(json.dumps(records["digits"]["learned_with"]))
    for task, dtype in (("digits", "float32"), ("earlier", "uint8")):
        told = records[task]["learned_with"]
        del told["preparation"]["image_size"]
        told["input"]["dtype"] = dtype
        if dtype == "float32":
            told["preparation"] |= {"pixel_mean": None, "pixel_deviation": None}
    index.write_text(json.dumps(values))
    return cwps.Pool.open(folder)


@pytest.fixture(scope="module")
def client(pool):
    with running(PlainBank(pool), pool, Limits(batch_size=4, pictures=8)) as client:
        yield client


@pytest.mark.parametrize("task", ["digits", "earlier"])
def test_arrays_are_answered_as_predict_answers_them(client, pool, task):
    inputs = INPUTS if task == "digits" else WHOLE
    wanted = cwps.predict(pool, task, inputs).top(2)
    sent = [(npy(inputs), NPY), (npy(np.asfortranarray(inputs)), NPY)]
    sent.append((json.dumps({"inputs": inputs.tolist()}), JSON))
    for content, headers in sent:
        answer = client.post(f"/v1/predict?task={task}&top=2", content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        predictions = answer.json()["predictions"]
        assert [one["picture"] for one in predictions] == ["input 0", "input 1", "input 2"]
        for one, top in zip(predictions, wanted, strict=True):
            (got,) = one["answers"]
            assert got["task"] == task and [share["class"] for share in got["top"]] == [
                name for name, _ in top
            ]
            shares = [share["probability"] for share in got["top"]]
            np.testing.assert_allclose(shares, [share for _, share in top], atol=1e-5)


WRONG = {
    "wrong shape": (npy(INPUTS[:, 1:]), "(3, 11, 12, 3) of float32; digits@1 takes (n, 12, 12, 3)"),
    "one input without n": (npy(INPUTS[0]), "(12, 12, 3) of float32; digits@1 takes (n, 12, 12, 3)"),
    "none": (npy(INPUTS[:0]), "(0, 12, 12, 3) of float32"),
    "a number": (npy(INPUTS[0, 0, 0, 0]), "() of float32"),
    "wrong type": (npy(INPUTS.astype(np.float64)), "of float64; digits@1 takes (n, 12, 12, 3) of float32"),
    "objects": (npy(INPUTS.astype(object)), "of object"),
    "a pickle": (pickle.dumps(INPUTS), "not a .npy file"),
    "cut off": (npy(INPUTS)[:-1], "5183 bytes of numbers, where its header tells 5184"),
    "too long": (npy(INPUTS) + b"x", "5185 bytes of numbers, where its header tells 5184"),
    "a header that lies": (
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (8, 12, 12, 3)}\n"),
        "0 bytes of numbers, where its header tells 13824",
    ),
    "a header that is no literal": (header("__import__('os').abort()\n"), "not a .npy file"),
    "a long header": (header("{" + " " * 20_000 + "}\n"), "not a .npy file"),
    "an unknown version": (b"\x93NUMPY\3\0" + bytes(99), "not a .npy file (version 3.0)"),
    "empty": (b"", "not a .npy file"),
    "not finite": (npy(INPUTS * np.float32(np.inf)), "a value is not finite"),
    "what no network bears": (npy(np.full_like(INPUTS, 3e38)), "what digits@1 answers is not finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_does_not_fit_is_told_in_one_line(client, case):
    content, why = WRONG[case]
    assert why in error(client.post("/v1/predict?task=digits", content=content, headers=NPY), 422)


WRONG_JSON = {
    "not JSON": ("digits", b"{", "not JSON"),
    "too deep": ("digits", b"[" * 100_000, "not JSON"),
    "no object": ("digits", json.dumps(INPUTS.tolist()), "not an object with 'inputs' alone"),
    "another key": ("digits", '{"inputs": [], "task": "digits"}', "not an object with 'inputs' alone"),
    "words": ("digits", '{"inputs": ["a"]}', "not numbers alone"),
    "nothing": ("digits", '{"inputs": []}', "(0,) of float32"),
    "ragged": ("digits", '{"inputs": [[1, 2], [3]]}', "lists of different lengths"),
    "wrong shape": ("digits", '{"inputs": [[1, 2]]}', "(1, 2) of float32; digits@1 takes (n, 12, 12, 3)"),
    "too large": ("digits", json.dumps({"inputs": np.full((1, 12, 12, 3), 1e39).tolist()}), "not finite"),
    "halves": ("earlier", json.dumps({"inputs": (WHOLE + 0.5).tolist()}), "not whole numbers alone"),
    "too large for its type": (
        "earlier",
        json.dumps({"inputs": (WHOLE + np.int32(256)).tolist()}),
        "a number is not from 0 to 255",
    ),
}


@pytest.mark.parametrize("case", WRONG_JSON)
def test_json_that_does_not_fit_is_told_in_one_line(client, case):
    task, content, why = WRONG_JSON[case]
    assert why in error(client.post(f"/v1/predict?task={task}", content=content, headers=JSON), 422)


def test_a_task_is_asked_about_what_it_takes(client, served_files):
    takes = {one["task"]: one["takes"] for one in client.get("/v1/tasks").json()["tasks"]}
    assert takes == {
        "digits": "arrays (n, 12, 12, 3) of float32",
        "negative": "pictures",
        "earlier": "arrays (n, 12, 12, 3) of uint8",
    }
    line = error(ask(client, served_files[:1], params={"task": "digits"}), 422)
    assert "digits@1 takes arrays (n, 12, 12, 3) of float32" in line
    line = error(client.post("/v1/predict?task=negative", content=npy(INPUTS), headers=NPY), 422)
    assert "negative@1 takes pictures" in line
    (told,) = ask(client, served_files[:1]).json()["predictions"]
    assert [one["task"] for one in told["answers"]] == ["negative"]
    line = error(client.post("/v1/predict", content=npy(INPUTS), headers=NPY), 422)
    assert "earlier@1 (n, 12, 12, 3) of uint8" in line and "one by one" in line


def test_more_inputs_than_a_request_may_have_are_refused(client, pool, served_pool):
    many = npy(np.zeros((9, 12, 12, 3), np.float32))
    line = error(client.post("/v1/predict?task=digits", content=many, headers=NPY), 413)
    assert "9 inputs are more than 8" in line
    with running(PlainBank(served_pool, served.TASKS), served_pool) as other:
        line = error(other.post("/v1/predict", content=many, headers=NPY), 404)
        assert "no task that takes arrays is loaded" in line
