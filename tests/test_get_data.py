"""get_data.sh against a local server that cuts connections, lies about content or is not there."""

import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MNIST = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
L2X = [f"reviews.aspect{a}.{part}.txt" for a in range(4) for part in ("train", "heldout")]
L2X += ["annotations.json", "review+wiki.filtered.200.txt"]
NRI = {
    steps: [
        f"{kind}_{part}_novar_1skip_{steps}t_1r_graph10.npy"
        for kind in ("data", "edges")
        for part in ("train", "valid", "test")
    ]
    for steps in (10, 20)
}
TOOLS = [
    "bash",
    "cat",
    "dirname",
    "find",
    "grep",
    "gzip",
    "mkdir",
    "mv",
    "rm",
    "rmdir",
    "sed",
    "sha256sum",
    "sort",
    "tar",
]
CLIENTS = [
    pytest.param(client, marks=pytest.mark.skipif(not shutil.which(client), reason=f"{client} is not here"))
    for client in ("curl", "wget")
]


class Server(ThreadingHTTPServer):
    """Serves `files` by path, notes each request as (path, Range header), misbehaves where told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.cuts: dict[str, int] = {}  # answers that are still to break off half-way
        self.ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content)
        if self.server.cuts.get(self.path, 0) > 0:
            self.server.cuts[self.path] -= 1
            end = start + (len(content) - start) // 2
        self.wfile.write(content[start:end])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


class Checkout:
    """A folder with get_data.sh in it whose checksums are those of made-up files."""

    def __init__(self, root: Path) -> None:
        self.root = root / "a checkout"  # the space is on purpose
        self.data = self.root / "data"
        self.bin = root / "bin"
        self.calls = root / "python-calls"
        self.mnist = {name: gzip.compress(os.urandom(4000) + name.encode()) for name in MNIST}
        self.knapsack = {"Data.npz": os.urandom(4000)}
        self.root.mkdir()
        self.script = self.root / "get_data.sh"
        self.script.write_text(self._with_checksums((ROOT / "get_data.sh").read_text()))
        self.script.chmod(0o755)
        self._fill_bin()

    def _with_checksums(self, text: str) -> str:
        for name, content in (self.mnist | self.knapsack).items():
            text, count = re.subn(
                rf"^[0-9a-f]{{64}}  {re.escape(name)}$",
                f"{hashlib.sha256(content).hexdigest()}  {name}",
                text,
                flags=re.MULTILINE,
            )
            assert count == 1, f"get_data.sh has no checksum for {name}"
        return text

    def _fill_bin(self) -> None:
        """A PATH of its own: just the tools that the script needs, and no waiting."""
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or pytest.skip(f"{tool} is not here"))
        self._write_program("sleep", "exit 0")
        self._write_program("fake-python", f'echo "$PYTHONPATH|$*" >>"{self.calls}"\n[ ! -e "{self.root}/fail" ]')

    def _write_program(self, name: str, body: str) -> None:
        (self.bin / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (self.bin / name).chmod(0o755)

    def run(
        self,
        *words: str,
        mirror: str = "http://127.0.0.1:9",
        client: str | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs get_data.sh with one client (by default curl, else wget) on its PATH."""
        client = client or ("curl" if shutil.which("curl") else "wget")
        for other in ("curl", "wget"):
            (self.bin / other).unlink(missing_ok=True)
        if client != "none":
            (self.bin / client).symlink_to(shutil.which(client) or pytest.skip(f"{client} is not here"))
        env = {"PATH": str(self.bin), "DATA_MIRROR": mirror, "PYTHON": "fake-python", "LC_ALL": "C"}
        return subprocess.run(
            [str(self.script), *words],
            cwd=cwd or self.root,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def python_calls(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def tree(self) -> set[str]:
        """All files under data/, relative to it."""
        return {str(p.relative_to(self.data)) for p in self.data.rglob("*") if not p.is_dir()}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def archive(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """A .tar.gz of `members` (path -> content) after `links` (path -> target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, target in (links or {}).items():
            link = tarfile.TarInfo(path)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for path, content in members.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def l2x_members(folder: str = "some/inner folder/") -> dict[str, bytes]:
    return {folder + name: f"content of {name}".encode() for name in L2X}


def serve_mnist(server: Server, checkout: Checkout, prefix: str = "/") -> None:
    server.files.update({prefix + name: content for name, content in checkout.mnist.items()})


@pytest.mark.parametrize("client", CLIENTS)
def test_all_good_vae_files_land_in_place_and_nothing_else_stays(server, checkout, client):
    serve_mnist(server, checkout)
    done = checkout.run("vae", mirror=server.url, client=client)
    assert done.returncode == 0, done.stderr
    assert {name: (checkout.data / "mnist" / name).read_bytes() for name in MNIST} == checkout.mnist
    assert not (checkout.data / ".downloads").exists()


@pytest.mark.parametrize("client", CLIENTS)
def test_l2x_files_are_found_anywhere_in_the_archive_and_the_terms_are_said(server, checkout, client):
    server.files["/l2x-data.tar.gz"] = archive({**l2x_members(), "some/README": b"unasked"})
    done = checkout.run("l2x", mirror=server.url + "/", client=client)
    assert done.returncode == 0, done.stderr
    assert checkout.tree() == set(L2X)
    assert (checkout.data / L2X[-1]).read_text() == f"content of {L2X[-1]}"
    assert "asked that the set not be redistributed" in done.stderr
    assert server.requests == [("/l2x-data.tar.gz", None)]


@pytest.mark.parametrize("client", CLIENTS)
def test_the_knapsacks_are_taken_from_the_first_mirror_that_has_the_right_ones(server, checkout, client):
    server.files["/bad/Data.npz"] = b"<html>sign in</html>"
    server.files["/good/Data.npz"] = checkout.knapsack["Data.npz"]
    done = checkout.run("knapsack", mirror=f"{server.url}/bad {server.url}/good", client=client)
    assert done.returncode == 0, done.stderr
    assert f"{server.url}/bad/Data.npz: wrong sha256" in done.stderr
    assert checkout.tree() == {"knapsack/Data.npz"}
    assert (checkout.data / "knapsack" / "Data.npz").read_bytes() == checkout.knapsack["Data.npz"]
    server.requests.clear()
    assert checkout.run("knapsack", mirror=server.url, client=client).returncode == 0 and not server.requests


def test_released_graph_layouts_go_to_a_folder_of_their_own(server, checkout):
    names = NRI[10] + NRI[20]
    server.files["/sst-data.tar.gz"] = archive({f"data/{name}": b"positions" for name in names})
    done = checkout.run("nri-released", mirror=server.url)
    assert done.returncode == 0, done.stderr
    assert checkout.tree() == {f"released/{name}" for name in names}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_cut_connection_is_resumed_within_the_run(server, checkout, client):
    serve_mnist(server, checkout)
    size = len(checkout.mnist[MNIST[0]])
    server.cuts[f"/{MNIST[0]}"] = 1
    done = checkout.run("vae", mirror=server.url, client=client)
    assert done.returncode == 0, done.stderr
    assert server.requests[:2] == [(f"/{MNIST[0]}", None), (f"/{MNIST[0]}", f"bytes={size // 2}-")]
    assert (checkout.data / "mnist" / MNIST[0]).read_bytes() == checkout.mnist[MNIST[0]]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_second_run_resumes_what_the_first_could_not_finish(server, checkout, client):
    serve_mnist(server, checkout)
    path, size = f"/{MNIST[0]}", len(checkout.mnist[MNIST[0]])
    server.cuts[path] = 3
    first = checkout.run("vae", mirror=server.url, client=client)
    assert first.returncode == 1
    assert f"{server.url}{path}" in first.stderr.splitlines()[-1]
    assert checkout.tree() == {f".downloads/{MNIST[0]}.part"}
    server.requests.clear()
    second = checkout.run("vae", mirror=server.url, client=client)
    assert second.returncode == 0, second.stderr
    asked_path, asked_range = server.requests[0]
    assert asked_path == path and asked_range is not None
    assert size // 2 < int(re.sub(r"\D", "", asked_range)) < size
    assert checkout.tree() == {f"mnist/{name}" for name in MNIST}
    assert (checkout.data / "mnist" / MNIST[0]).read_bytes() == checkout.mnist[MNIST[0]]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_without_ranges_is_asked_from_the_start(server, checkout, client):
    serve_mnist(server, checkout)
    server.ranges = False
    server.cuts[f"/{MNIST[0]}"] = 1
    done = checkout.run("vae", mirror=server.url, client=client)
    assert done.returncode == 0, done.stderr
    assert (checkout.data / "mnist" / MNIST[0]).read_bytes() == checkout.mnist[MNIST[0]]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("stale", [100, 10**5], ids=["shorter", "longer"])
def test_a_stale_part_of_another_file_is_dropped_and_the_file_fetched_anew(server, checkout, client, stale):
    serve_mnist(server, checkout)
    part = checkout.data / ".downloads" / f"{MNIST[0]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"?" * stale)
    done = checkout.run("vae", mirror=server.url, client=client)
    assert done.returncode == 0, done.stderr
    assert (checkout.data / "mnist" / MNIST[0]).read_bytes() == checkout.mnist[MNIST[0]]
    assert not (checkout.data / ".downloads").exists()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_part_that_is_already_complete_is_used(server, checkout, client):
    serve_mnist(server, checkout)
    part = checkout.data / ".downloads" / f"{MNIST[0]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(checkout.mnist[MNIST[0]])
    done = checkout.run("vae", mirror=server.url, client=client)
    assert done.returncode == 0, done.stderr
    assert (checkout.data / "mnist" / MNIST[0]).read_bytes() == checkout.mnist[MNIST[0]]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("word", ["vae", "l2x"])
def test_a_server_that_is_gone_is_named_and_nothing_stays(checkout, client, word):
    with Server() as gone:
        url = gone.url
    done = checkout.run(word, mirror=url, client=client)
    assert done.returncode == 1
    wanted = "l2x-data.tar.gz" if word == "l2x" else MNIST[0]
    assert f"{url}/{wanted}" in done.stderr.splitlines()[-1]
    assert not list(checkout.data.iterdir())


@pytest.mark.parametrize("client", CLIENTS)
def test_a_file_that_the_server_lacks_is_asked_for_once_a_mirror(server, checkout, client):
    done = checkout.run("l2x", mirror=f"{server.url}/a {server.url}/b", client=client)
    assert done.returncode == 1
    assert f"{server.url}/a/l2x-data.tar.gz {server.url}/b/l2x-data.tar.gz" in done.stderr.splitlines()[-1]
    assert [path for path, _ in server.requests] == ["/a/l2x-data.tar.gz", "/b/l2x-data.tar.gz"]
    assert checkout.tree() == set()


@pytest.mark.parametrize("client", CLIENTS)
def test_after_a_wrong_checksum_the_next_mirror_is_tried(server, checkout, client):
    serve_mnist(server, checkout, "/bad/")
    serve_mnist(server, checkout, "/good/")
    server.files[f"/bad/{MNIST[2]}"] = gzip.compress(b"something else")
    done = checkout.run("vae", mirror=f"{server.url}/bad {server.url}/good", client=client)
    assert done.returncode == 0, done.stderr
    assert f"{server.url}/bad/{MNIST[2]}: wrong sha256" in done.stderr
    assert (f"/good/{MNIST[2]}", None) in server.requests
    assert {name: (checkout.data / "mnist" / name).read_bytes() for name in MNIST} == checkout.mnist


def test_wrong_checksums_everywhere_are_an_error_and_the_bad_file_is_removed(server, checkout):
    serve_mnist(server, checkout)
    server.files[f"/{MNIST[1]}"] = gzip.compress(b"something else")
    done = checkout.run("vae", mirror=server.url)
    assert done.returncode == 1
    assert "wrong sha256" in done.stderr and MNIST[1] in done.stderr.splitlines()[-1]
    good_before_it = MNIST[0]
    assert checkout.tree() == {f"mnist/{good_before_it}"}


@pytest.mark.parametrize("content", [b"<html>sign in</html>", gzip.compress(b"not a tar")], ids=["html", "gzip"])
def test_something_else_under_the_archives_name_is_removed(server, checkout, content):
    server.files["/l2x-data.tar.gz"] = content
    done = checkout.run("l2x", mirror=server.url)
    assert done.returncode == 1
    assert "l2x-data.tar.gz" in done.stderr.splitlines()[-1]
    assert checkout.tree() == set()


def test_an_archive_without_an_expected_file_moves_nothing_and_is_not_fetched_twice(server, checkout):
    members = l2x_members()
    del members["some/inner folder/annotations.json"]
    members["some/inner folder/reviews.aspect3.train.txt"] = b""  # an empty file is no data
    server.files["/l2x-data.tar.gz"] = archive(members)
    for _ in range(2):
        done = checkout.run("l2x", mirror=server.url)
        assert done.returncode == 1
        assert "lacks: reviews.aspect3.train.txt annotations.json;" in done.stderr.splitlines()[-1]
        assert checkout.tree() == {".downloads/l2x-data.tar.gz"}
    assert len(server.requests) == 1


@pytest.mark.parametrize("path", ["../outside.txt", "a/../../../outside.txt", "/outside.txt", "a/.."])
def test_an_archive_that_points_outside_is_not_unpacked(server, checkout, path):
    server.files["/l2x-data.tar.gz"] = archive({**l2x_members(), path: b"outside"})
    done = checkout.run("l2x", mirror=server.url)
    assert done.returncode == 1
    assert "leads outside its folder" in done.stderr.splitlines()[-1]
    assert checkout.tree() == set()
    assert not list(checkout.root.parent.rglob("outside.txt"))


def test_an_archive_cannot_write_through_a_link_to_the_outside(server, checkout, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    server.files["/l2x-data.tar.gz"] = archive(l2x_members("inner/"), links={"inner": str(outside)})
    done = checkout.run("l2x", mirror=server.url)
    assert done.returncode == 1
    assert "could not unpack" in done.stderr
    assert not list(outside.iterdir())


def test_files_that_are_there_are_kept_and_no_server_is_asked(server, checkout):
    (checkout.data / "mnist").mkdir(parents=True)
    for path in [*L2X, *(f"mnist/{name}" for name in MNIST), *NRI[10], *NRI[20]]:
        (checkout.data / path).write_text("mine")
    done = checkout.run(mirror=server.url)
    assert done.returncode == 0, done.stderr
    assert server.requests == [] and checkout.python_calls() == []
    assert {(checkout.data / path).read_text() for path in checkout.tree()} == {"mine"}


def test_only_missing_files_are_added_to_those_that_are_there(server, checkout):
    serve_mnist(server, checkout)
    server.files["/l2x-data.tar.gz"] = archive(l2x_members())
    (checkout.data / "mnist").mkdir(parents=True)
    (checkout.data / "mnist" / MNIST[0]).write_text("mine")
    (checkout.data / "annotations.json").write_text("mine")
    done = checkout.run("vae", "l2x", mirror=server.url)
    assert done.returncode == 0, done.stderr
    assert (checkout.data / "mnist" / MNIST[0]).read_text() == "mine"
    assert (checkout.data / "annotations.json").read_text() == "mine"
    assert checkout.tree() == {*L2X, *(f"mnist/{name}" for name in MNIST)}
    assert f"/{MNIST[0]}" not in [path for path, _ in server.requests]


def test_without_a_word_each_task_is_tried_even_when_one_fails(server, checkout):
    serve_mnist(server, checkout)
    done = checkout.run(mirror=server.url)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("get_data.sh: not complete: l2x ")
    assert checkout.tree() == {f"mnist/{name}" for name in MNIST}
    assert len(checkout.python_calls()) == 2


def test_nri_is_simulated_for_both_lengths_with_the_repository_on_pythonpath(checkout):
    done = checkout.run("nri")
    assert done.returncode == 0, done.stderr
    assert checkout.python_calls() == [
        f"{checkout.root}|-m aaai23.nri.simulate --timesteps {steps} --output data" for steps in (10, 20)
    ]


def test_nri_simulates_only_the_length_that_is_missing(checkout):
    checkout.data.mkdir()
    for name in NRI[10]:
        (checkout.data / name).write_text("mine")
    assert checkout.run("nri").returncode == 0
    assert checkout.python_calls() == [f"{checkout.root}|-m aaai23.nri.simulate --timesteps 20 --output data"]


def test_a_simulation_that_fails_is_an_error(checkout):
    (checkout.root / "fail").touch()
    done = checkout.run("nri")
    assert done.returncode == 1
    assert "aaai23.nri.simulate --timesteps 10" in done.stderr.splitlines()[-1]


SAMPLE_CALLS = [
    "-m aaai23.l2x.sample --output data/sample",
    "-m aaai23.dvae.sample --output data/sample/mnist",
    "-m aaai23.nri.simulate --timesteps 10 --samples 1000 200 200 --output data/sample --sample",
]


def write_modules(checkout: Checkout) -> None:
    for module in ("l2x/sample", "dvae/sample", "nri/simulate"):
        path = checkout.root / "aaai23" / f"{module}.py"
        path.parent.mkdir(parents=True)
        path.touch()


def test_sample_makes_the_three_stand_ins_offline(checkout):
    write_modules(checkout)
    done = checkout.run("sample", client="none")
    assert done.returncode == 0, done.stderr
    assert checkout.python_calls() == [f"{checkout.root}|{call}" for call in SAMPLE_CALLS]


@pytest.mark.parametrize("lacking", range(3))
def test_sample_makes_only_the_part_that_lacks_a_file(checkout, lacking):
    write_modules(checkout)
    parts = [L2X, [f"mnist/{name}" for name in MNIST], NRI[10]]
    (checkout.data / "sample" / "mnist").mkdir(parents=True)
    for part in parts:
        for path in part:
            (checkout.data / "sample" / path).write_text("mine")
    assert checkout.run("sample").returncode == 0
    assert checkout.python_calls() == []
    (checkout.data / "sample" / parts[lacking][-1]).unlink()
    assert checkout.run("sample").returncode == 0
    assert checkout.python_calls() == [f"{checkout.root}|{SAMPLE_CALLS[lacking]}"]


@pytest.mark.skipif(not shutil.which("shasum"), reason="shasum is not here")
def test_shasum_serves_where_sha256sum_is_not_there(server, checkout):
    serve_mnist(server, checkout)
    server.files[f"/{MNIST[-1]}"] = gzip.compress(b"something else")
    (checkout.bin / "sha256sum").unlink()
    (checkout.bin / "shasum").symlink_to(shutil.which("shasum"))
    done = checkout.run("vae", mirror=server.url)
    assert done.returncode == 1 and f"{MNIST[-1]}: wrong sha256" in done.stderr
    assert checkout.tree() == {f"mnist/{name}" for name in MNIST[:-1]}


def test_a_machine_without_curl_and_wget_is_told_so(checkout):
    done = checkout.run("vae", client="none")
    assert done.returncode == 1
    assert "install curl or wget" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("words", [["mnist"], ["vae", "-x"], [""]])
def test_an_unknown_word_is_one_line_and_exit_code_2(server, checkout, words):
    done = checkout.run(*words, mirror=server.url)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and f"unknown word '{words[-1]}'" in done.stderr
    assert server.requests == []


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_word_and_variable(checkout, flag):
    done = checkout.run(flag)
    assert done.returncode == 0 and done.stderr == ""
    for word in ("l2x", "vae", "nri", "sample", "nri-released", "knapsack", "DATA_MIRROR", "PYTHON"):
        assert re.search(rf"^  {word} ", done.stdout, re.MULTILINE), word


def test_it_works_from_any_folder(server, checkout, tmp_path):
    serve_mnist(server, checkout)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = checkout.run("vae", "nri", mirror=server.url, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert checkout.tree() == {f"mnist/{name}" for name in MNIST}
    assert len(checkout.python_calls()) == 2
    assert not list(elsewhere.iterdir())


def test_data_readme_names_each_file_and_the_checksums_of_get_data():
    readme = (ROOT / "data" / "README.md").read_text()
    checksums = re.findall(r"^([0-9a-f]{64})  (\S+)$", (ROOT / "get_data.sh").read_text(), re.MULTILINE)
    assert sorted(name for _, name in checksums) == sorted([*MNIST, "Data.npz"])
    for checksum, name in checksums:
        assert re.search(rf"`{re.escape(name)}`.*`{checksum}`", readme), name
