"""Downloads: scikit-learn's own client against a real server, which stands where openml.org would."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pytest
import sklearn.datasets._openml as client

from normkit.errors import InputError
from normkit.lab.data import load

TEST_ROWS = 10_000  # the official test split of each of the data sets
ROWS, PIXELS = TEST_ROWS + 30, 28 * 28


class OpenML(HTTPServer):
    """What a download asks of openml.org, for one data set."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.requests: list[str] = []
        api = "/api/v1/json/data"
        arff = self._arff(x, y)
        columns = [*((f"pixel{i}", "numeric") for i in range(x.shape[1])), ("class", "nominal")]
        self.answers = {
            f"{api}/list/data_name/mnist_784/limit/2/data_version/1": {
                "data": {"dataset": [{"did": 554, "name": "mnist_784", "version": 1, "status": "active"}]}
            },
            f"{api}/554": {
                "data_set_description": {
                    "name": "mnist_784",
                    "version": "1",
                    "format": "ARFF",
                    "status": "active",
                    "description": "made for a test",
                    "url": f"{self.url}data/554.arff",
                    "md5_checksum": hashlib.md5(arff).hexdigest(),
                }
            },
            f"{api}/features/554": {
                "data_features": {"feature": [self._feature(i, *column) for i, column in enumerate(columns)]}
            },
            f"{api}/qualities/554": {
                "data_qualities": {"quality": [{"name": "NumberOfInstances", "value": str(len(x))}]}
            },
            "/data/554.arff": arff,
        }

    def _arff(self, x: np.ndarray, y: np.ndarray) -> bytes:
        rows = io.StringIO()
        np.savetxt(rows, np.c_[x, y], fmt="%d", delimiter=",")
        columns = "".join(f"@ATTRIBUTE pixel{i} real\n" for i in range(x.shape[1]))
        return f"@RELATION images\n{columns}@ATTRIBUTE class {{0,1,2}}\n@DATA\n{rows.getvalue()}".encode()

    def _feature(self, index: int, name: str, kind: str) -> dict[str, str]:
        return {
            "index": str(index),
            "name": name,
            "data_type": kind,
            "is_target": str(name == "class").lower(),
            "is_ignore": "false",
            "is_row_identifier": "false",
            "number_of_missing_values": "0",
        }


class Answer(BaseHTTPRequestHandler):
    server: OpenML

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        answer = self.server.answers.get(self.path)
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@contextmanager
def looking_at(url: str) -> Iterator[None]:
    """Have scikit-learn ask another server than openml.org."""
    home = "https://api.openml.org/"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in vars(client).copy().items():
            if isinstance(value, str) and value.startswith(home):
                patch.setattr(client, name, value.replace(home, url))
        yield


@contextmanager
def serving(x: np.ndarray) -> Iterator[OpenML]:
    with OpenML(x, np.arange(len(x)) % 3) as server, looking_at(server.url):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    random = np.random.default_rng(0)
    x = np.zeros((ROWS, PIXELS), dtype=int)
    x[:, ::97] = random.integers(0, 256, x[:, ::97].shape)  # mostly zeros compress quickly
    return x


@pytest.fixture(scope="module")
def home(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the data set in it; there is no network any more."""
    home = tmp_path_factory.mktemp("home")
    with serving(pixels) as server:
        load("mnist", home=home)
        assert len(server.requests) == len(server.answers)
    return home


def refusal(home: Path) -> str:
    with pytest.raises(InputError) as error:
        load("mnist", home=home)
    cause = error.value.__cause__
    if isinstance(cause, HTTPError):
        cause.close()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_images_come_from_the_cache_in_order(home: Path, pixels: np.ndarray) -> None:
    with looking_at("http://127.0.0.1:1/"):
        data = load("mnist", home=home)
    assert data.x_train.shape == (ROWS - TEST_ROWS, 1, 28, 28)
    assert data.x_val.shape == (TEST_ROWS, 1, 28, 28)
    both = np.concatenate([data.x_train, data.x_val]).reshape(ROWS, PIXELS)
    np.testing.assert_array_equal(both, pixels)
    np.testing.assert_array_equal(np.concatenate([data.y_train, data.y_val]), np.arange(ROWS) % 3)
    assert data.classes == 3


def test_truncated_cache(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    (cached,) = tmp_path.rglob("554.arff.gz")
    cached.write_bytes(cached.read_bytes()[:-1000])
    assert f"delete {tmp_path / 'openml'}" in refusal(tmp_path)


def test_no_network_names_the_data_that_needs_none(tmp_path: Path) -> None:
    with socket.socket() as unheard:  # bound and not listening: connections are refused
        unheard.bind(("127.0.0.1", 0))
        with looking_at(f"http://127.0.0.1:{unheard.getsockname()[1]}/"):
            message = refusal(tmp_path)
    assert "mnist comes from openml.org" in message
    assert "refused" in message
    assert "--data digits" in message


def test_server_without_the_data(tmp_path: Path) -> None:
    with serving(np.zeros((2, 2), dtype=int)) as server:
        server.answers.clear()
        assert "404" in refusal(tmp_path)


def test_download_that_differs_from_its_checksum(tmp_path: Path) -> None:
    with serving(np.zeros((2, 2), dtype=int)) as server:
        server.answers["/data/554.arff"] += b"0"
        message = refusal(tmp_path)
    assert "md5 checksum" in message
    assert f"delete {tmp_path / 'openml'}" in message


def test_other_images_than_expected(tmp_path: Path) -> None:
    with serving(np.zeros((20, 5), dtype=int)):
        message = refusal(tmp_path)
    assert "over 10000 rows of 784 pixels are expected, got (20, 5)" in message
