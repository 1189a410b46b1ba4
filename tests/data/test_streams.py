import gzip
import sys
from pathlib import Path

import pytest

from recsys_opt.data.streams import compression_of, text_blocks
from recsys_opt.errors import InputError

TEXT = b"".join(b"%d\t%x\n" % (i, i * i) for i in range(300_000))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_plain(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", TEXT)
    told: list[int] = []
    assert b"".join(text_blocks(path, told.append)) == TEXT
    assert sum(told) == len(TEXT)


def test_gzip_of_several_members_with_padding_after_them(tmp_path: Path) -> None:
    data = gzip.compress(TEXT[:1000]) + gzip.compress(b"") + gzip.compress(TEXT[1000:]) + b"\0" * 100
    path = write(tmp_path / "a.gz", data)
    told: list[int] = []
    assert b"".join(text_blocks(path, told.append)) == TEXT
    assert sum(told) == len(data)


def test_gzip_blocks_are_bounded_however_well_the_text_is_compressed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gz", gzip.compress(b"\0" * 50_000_000))
    blocks = [len(block) for block in text_blocks(path)]
    assert sum(blocks) == 50_000_000
    assert max(blocks) <= 1 << 20


def test_zstd_of_several_frames(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    pack = zstandard.ZstdCompressor().compress
    path = write(tmp_path / "a.zst", pack(TEXT[:1000]) + pack(TEXT[1000:]))
    assert b"".join(text_blocks(path)) == TEXT


def test_zstd_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = write(tmp_path / "a.zst", b"\x28\xb5\x2f\xfd" + bytes(20))
    with pytest.raises(InputError, match=r"a\.zst needs the zstandard package: pip install zstandard"):
        list(text_blocks(path))


def test_the_first_bytes_tell_the_compression(tmp_path: Path) -> None:
    assert compression_of(write(tmp_path / "a", gzip.compress(b"x"))) == "gzip"
    assert compression_of(write(tmp_path / "b.txt", b"0\t")) == "none"
    with pytest.raises(InputError, match=r"c\.gz begins with the bytes 30 09, which no gzip file does"):
        compression_of(write(tmp_path / "c.gz", b"0\t"))
    with pytest.raises(InputError, match=r"d\.zst is empty"):
        compression_of(write(tmp_path / "d.zst", b""))
    with pytest.raises(InputError, match=r"cannot read .*nothing: No such file"):
        compression_of(tmp_path / "nothing")
