"""Addresses of shards come from a configuration, which may come from anybody: none runs a command unasked."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from src.data.captions.shards import CaptionShards


def write_shard(path: Path) -> Path:
    encoded = io.BytesIO()
    Image.new("RGB", (32, 32)).save(encoded, "PNG")
    with tarfile.open(path, "w") as tar:
        for name, content in (("0.png", encoded.getvalue()), ("0.txt", b"a dog")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("start", ["pipe:", "a.tar::pipe:", "{pipe:,pipe:}"])
def test_a_shard_runs_a_command_only_on_request(tmp_path: Path, start: str) -> None:
    ran, shard = tmp_path / "ran", write_shard(tmp_path / "0.tar")
    address = f"{start}touch {ran}; cat {shard}"
    with pytest.raises(ValueError, match=r"runs a command; if it is yours, add data\.train\.run_commands=true"):
        CaptionShards(address, 1)
    assert not ran.exists()
    source = CaptionShards(address.removeprefix("a.tar::"), 1, run_commands=True) if "{" not in start else None
    assert source is None or ran.exists()


@pytest.mark.parametrize("address", ["PIPE:ls", "evil:ls", "exec:ls", "data:abc", "-", "pipe :ls", " pipe:ls"])
def test_an_address_of_an_unknown_kind_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="shard"):
        CaptionShards(address, 1)
