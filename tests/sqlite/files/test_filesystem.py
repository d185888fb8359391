"""Databases on file systems that several machines share."""

from __future__ import annotations

import os

import pytest
from cancelling import assert_free
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from qsession import create_async_engine
from qsession.sqlite.files import filesystem


def mountinfo(folder, path, kind):
    """The kernel's list of mounts, as if what `path` lies on were of another kind."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    made = folder / "mountinfo"
    made.write_text(
        "22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw\n"
        f"36 22 {number} / /data rw,noatime master:1 - {kind} server:/export rw,vers=4.2\n"
    )
    return made


@pytest.fixture
def on(tmp_path, monkeypatch):
    """Makes the folder of the test lie on some kind of file system."""

    def on(kind):
        monkeypatch.setattr(filesystem, "_MOUNTS", mountinfo(tmp_path, tmp_path, kind))
        filesystem._of_device.cache_clear()

    yield on
    filesystem._of_device.cache_clear()


def test_kinds(tmp_path, on):
    """What Linux says of the device that a file lies on; nothing for one that is not there."""
    on("xfs")
    assert filesystem.file_system(str(tmp_path)) == "xfs"
    assert filesystem.file_system(str(tmp_path / "missing")) is None


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
async def test_network_file_system_is_refused(tmp_path, on, kind):
    """When the first connection is opened, with a way out, and nothing is left locked."""
    on(kind)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    for _ in range(2):
        with pytest.raises(OperationalError, match=rf"network file system \({kind}\).*PostgreSQL"):
            async with engine.begin() as connection:
                await connection.execute(text("CREATE TABLE t (x)"))
    on("ext4")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (x)"))
    await engine.dispose()
    assert_free(tmp_path / "app.db")


def test_unreadable_list_of_mounts(tmp_path, monkeypatch):
    """Where the system does not say, nothing is refused."""
    monkeypatch.setattr(filesystem, "_MOUNTS", tmp_path / "missing")
    filesystem._of_device.cache_clear()
    assert filesystem.file_system(str(tmp_path)) is None
    filesystem.refuse_network(str(tmp_path))
    filesystem.refuse_network("")
    filesystem._of_device.cache_clear()


async def test_hard_links_are_logged(tmp_path, caplog):
    """A second name by a hard link is warned of, once; a symbolic link is not one."""
    path = tmp_path / "app.db"
    path.touch()
    (tmp_path / "symbolic.db").symlink_to(path)

    async def use(name):
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / name}")
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        await engine.dispose()

    await use("symbolic.db")
    assert not caplog.records
    os.link(path, tmp_path / "hard.db")
    for _ in range(2):
        await use("app.db")
    (record,) = caplog.records
    assert "app.db' has another name, a hard link" in record.getMessage()
