"""Archives that must not be read: paths that leave them, zip bombs, what cannot be unpacked."""

import pathlib
import tracemalloc
import zipfile

import pytest
from test_folders import BLACK, files, pack, read

from cwps_jax.errors import CwpsError


@pytest.mark.parametrize(
    "name",
    [
        "/etc/train/dog/0.png",
        "t/../../0.png",
        "../t/0.png",
        "t\\train\\dog\\0.png",
        "C:/t/0.png",
        "t//0.png",
        "./t/0",
    ],
)
def test_paths_that_leave_the_archive_are_refused(tmp_path, name):
    pack(tmp_path / "t.zip", {**files("t", 1, 1), name: BLACK})
    with pytest.raises(CwpsError, match="t.zip: .*0.*: not a plain path inside the archive"):
        read(tmp_path, "t")


def headers(path: pathlib.Path, member: str, change) -> None:
    """Applies a change to both headers of a member, given with where its flags, method and sizes begin."""
    content = bytearray(path.read_bytes())
    name = member.encode()
    change(content, content.index(name) - 30 + 6, False)  # PK 3 4, version
    change(content, content.rindex(name) - 46 + 8, True)  # PK 1 2, two versions
    path.write_bytes(content)


def test_members_that_must_not_be_unpacked_are_refused(tmp_path):
    member, path = "t/train/dog/000.png", tmp_path / "t.zip"
    stored = files("t", 1, 1)

    def refused(line: str) -> None:
        with pytest.raises(CwpsError, match=f"t.zip: {member}: {line}") as caught:
            read(tmp_path, "t")[0]
        assert "\n" not in str(caught.value)

    pack(path, {**stored, member: bytes(60 * 10**6)}, compression=zipfile.ZIP_DEFLATED)
    refused("58,.* bytes would unpack to 60,000,000; refused as a zip bomb")
    pack(path, {**stored, member: bytes(40 * 10**6)}, compression=zipfile.ZIP_DEFLATED)
    assert len(read(tmp_path, "t")[0].image) == 40 * 10**6
    pack(path, {**stored, member: bytes(60 * 10**6)})  # large, but no bomb
    assert len(read(tmp_path, "t")[0].image) == 60 * 10**6
    pack(path, stored, compression=zipfile.ZIP_LZMA)
    refused("is compressed by method 14")
    pack(path, {**stored, f"{member}*": BLACK})
    refused("is in the archive twice")

    def encrypt(content: bytearray, at: int, last: bool) -> None:
        content[at] |= 1

    def claim(size: int):
        def change(content: bytearray, at: int, last: bool) -> None:
            content[at + 16 : at + 20] = size.to_bytes(4, "little")

        return change

    pack(path, stored)
    headers(path, member, encrypt)
    refused("is encrypted")
    pack(path, stored)
    headers(path, member, claim(1_100_000_000))
    refused(".* would unpack to 1,100,000,000; refused")
    # A member that holds far more than it says is not unpacked beyond that.
    pack(path, {**stored, member: bytes(80 * 10**6)}, compression=zipfile.ZIP_DEFLATED)
    headers(path, member, claim(1000))
    tracemalloc.start()
    refused("cannot be read")
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
