"""The ssh device: what it hands to the client, and what it makes of the client's answers."""

import shlex
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from pydantic import ValidationError

from archloop import registry
from archloop.devices import remote
from archloop.devices.base import DeviceError
from archloop.devices.ssh import Ssh, _packed

Script = Callable[[str], Path]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Puts a program in place of the ssh client; gives the file that it may write to."""
    (tmp_path / "bin").mkdir()

    def script(body: str) -> Path:
        program = tmp_path / "bin" / "ssh"
        program.write_text(f"#!{sys.executable}\nimport sys, subprocess\n{body}\n")
        program.chmod(0o755)
        return tmp_path / "said"

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return script


def device(**settings: object) -> Ssh:
    device_class = registry.get("devices", "ssh")
    return device_class(device_class.Config(host="box", folder="/far", **settings))


LOCAL = "sys.exit(subprocess.run(['sh', '-c', sys.argv[-1]]).returncode)"
"""A client that runs the command here."""


@pytest.mark.parametrize("host", ["-oProxyCommand=id", "a b", "$(id)", "", "a;b"])
def test_a_host_is_never_an_option_or_a_command(host: str) -> None:
    with pytest.raises(ValidationError):
        Ssh.Config(host=host)


def test_settings_reach_the_client(client: Script, tmp_path: Path) -> None:
    said = client(f"open({str(tmp_path / 'said')!r}, 'w').write('\\n'.join(sys.argv[1:]))")
    device(user="me", port=2222, identity_file="/a key", config_file="/c").remove("/far/x y")
    words = said.read_text().split("\n")
    assert words[-3:-1] == ["--", "box"]
    assert shlex.split(shlex.split(words[-1])[2]) == ["rm", "-rf", "--", "/far/x y"]
    for option, value in (("-l", "me"), ("-p", "2222"), ("-i", "/a key"), ("-F", "/c")):
        assert words[words.index(option) + 1] == value
    assert "BatchMode=yes" in words


def test_describes_what_the_far_side_prints(client: Script) -> None:
    client(LOCAL)
    about = device().describe()
    assert about.processor
    assert about.num_cores >= 1
    assert about.os.startswith("Linux")


def test_the_signal_that_ended_a_program_is_told(client: Script, tmp_path: Path) -> None:
    client(LOCAL)
    with (tmp_path / "err").open("wb") as stderr:
        process = device().run(["sh", "-c", "kill -SEGV $$"], env={}, stderr=stderr)
        process.communicate(timeout=20)
    assert process.returncode == 128 + 11
    assert not device().is_gone(process.returncode, "")
    assert device().is_gone(255, "")


def test_a_program_that_ends_with_the_clients_own_status_is_no_lost_line(
    client: Script, tmp_path: Path
) -> None:
    client(LOCAL)
    for said, told in ((255, 254), (3, 3), (0, 0)):
        with (tmp_path / "err").open("wb") as stderr:
            process = device().run(["sh", "-c", f"exit {said}"], env={}, stderr=stderr)
            process.communicate(timeout=20)
        assert process.returncode == told
        assert not device().is_gone(process.returncode, "")


@pytest.mark.parametrize(
    ("body", "cause", "words"),
    [
        ("sys.stderr.write('ssh: Connection refused\\n'); sys.exit(255)", "gone", "box` works"),
        ("sys.stderr.write('tar: No space left on device\\n'); sys.exit(2)", "disk", "free some"),
        ("sys.stderr.write('tar: Disk quota exceeded\\n'); sys.exit(2)", "disk", "free some"),
        ("sys.stderr.write('Permission denied\\n'); sys.exit(1)", "crash", "Permission denied"),
    ],
)
def test_what_goes_wrong_is_told_apart(
    body: str, cause: str, words: str, client: Script, tmp_path: Path
) -> None:
    client(body)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DeviceError, match=words) as caught:
        device().push(tmp_path / "folder")
    assert caught.value.cause == cause


def test_two_studies_that_push_the_same_files_keep_their_own(
    client: Script, tmp_path: Path
) -> None:
    client(LOCAL)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("same")
    one, two = (Ssh(Ssh.Config(host="box", folder=str(tmp_path / "far"))) for _ in range(2))
    first, second = one.push(tmp_path / "folder"), two.push(tmp_path / "folder")
    assert one.push(tmp_path / "folder") == first != second
    one.remove(first)
    assert (Path(second) / "file").read_text() == "same"
    assert not Path(first).exists()
    assert [path.name for path in (tmp_path / "far").iterdir()] == [Path(second).name]


def left_beside(pushed: str) -> Path:
    """What another process of this machine pushed before it was killed."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    digest, machine, _, token = Path(pushed).name.split("-")
    left = Path(pushed).with_name(f"{digest}-{machine}-{ended.pid}-{token}")
    left.mkdir()
    return left


def test_what_a_killed_process_left_there_is_removed_by_the_next(
    client: Script, tmp_path: Path
) -> None:
    client(LOCAL)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("some")
    far = tmp_path / "far"
    kept = Ssh(Ssh.Config(host="box", folder=str(far))).push(tmp_path / "folder")
    left = left_beside(kept).name
    digest, _, process, token = left.split("-")
    others = [f"{digest}-of-its-own-{process}-{token}", "not archloop's"]
    for name in (f"{left}.part", *others):
        (far / name).mkdir()
    new = Path(Ssh(Ssh.Config(host="box", folder=str(far))).push(tmp_path / "folder")).name
    assert {path.name for path in far.iterdir()} == {Path(kept).name, new, *others}


def test_what_cannot_be_removed_there_ends_no_push(
    client: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(LOCAL)
    (tmp_path / "folder").mkdir()
    config, ask = Ssh.Config(host="box", folder=str(tmp_path / "far")), Ssh.ask
    left = left_beside(Ssh(config).push(tmp_path / "folder"))

    def slow(
        self: Ssh, commands: str, given: IO[bytes] | None = None, limit_s: float = 60.0
    ) -> str:
        if commands.startswith("rm -rf"):
            raise DeviceError("gone", "box did not answer in 60 s")
        return ask(self, commands, given, limit_s)

    monkeypatch.setattr(Ssh, "ask", slow)
    assert Path(Ssh(config).push(tmp_path / "folder")).is_dir()
    assert left.is_dir()


def test_what_a_machine_left_that_is_like_this_one_stays(
    client: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers on two machines may have one name, one address and processes numbered alike."""
    client(LOCAL)
    (tmp_path / "folder").mkdir()

    def pushed() -> str:
        there = Ssh(Ssh.Config(host="box", folder=str(tmp_path / "far")))
        return there.push(tmp_path / "folder")

    left = left_beside(pushed())
    (tmp_path / "boot").write_text("another\n")
    monkeypatch.setattr(remote, "_BOOT", tmp_path / "boot")
    pushed()
    assert left.is_dir()


def test_a_tilde_is_the_home_folder_there(client: Script, tmp_path: Path) -> None:
    """Words are quoted there: else a folder called ``~`` is made, and no interpreter is found."""
    client(f"import os\nos.chdir({str(tmp_path)!r})\n{LOCAL}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("some")
    found = Ssh(Ssh.Config(host="box", folder="~/far/", python="~/venv/bin/python"))
    assert Path(found.push(tmp_path / "folder")).parent == tmp_path / "far"
    assert found.python_argv() == (f"{tmp_path}/venv/bin/python", "-P")
    plain = Ssh(Ssh.Config(host="box", folder="near", python="python3"))
    assert (plain.pushed_to, plain.python_argv()) == (f"{tmp_path}/near", ("python3", "-P"))


def test_the_home_folder_there_is_asked_for_once(client: Script, tmp_path: Path) -> None:
    """Each question is a connection, and each process that measures needs the interpreter."""
    asked = client(f"open({str(tmp_path / 'said')!r}, 'a').write('x'); print('/home/me')")
    found = Ssh(Ssh.Config(host="box", python="~/venv/bin/python"))
    for _ in range(3):
        assert found.python_argv() == ("/home/me/venv/bin/python", "-P")
    assert found.pushed_to == "/home/me/.cache/archloop"
    assert asked.read_text() == "x"


def test_garbage_is_no_reading(client: Script) -> None:
    client(
        r"print('== /proc/stat\ncpu many few\n== /proc/meminfo\nMemAvailable: lots\n== ticks\nx')"
    )
    found = device().readings()
    assert found.busy_s is None
    assert found.available_memory_bytes is None
    assert device().describe().num_cores == 1
    assert device().wait_until_ready(0.0)


def test_no_client_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="apt-get install openssh-client"):
        device().readings()


def test_equal_folders_are_packed_alike(tmp_path: Path) -> None:
    def packed(folder: Path) -> bytes:
        with _packed(folder) as stream:
            return stream.read()

    for name in ("one", "two"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "file").write_text("same")
    assert packed(tmp_path / "one") == packed(tmp_path / "two")
    (tmp_path / "two" / "inner" / "file").write_text("other")
    assert packed(tmp_path / "one") != packed(tmp_path / "two")


def test_a_push_needs_no_memory_for_what_it_brings(client: Script, tmp_path: Path) -> None:
    client(LOCAL)
    local, num_bytes = tmp_path / "folder", 32 << 20
    (local / "inner").mkdir(parents=True)
    with (local / "inner" / "program").open("wb") as file:
        file.truncate(num_bytes)
    (local / "inner" / "program").chmod(0o755)
    there = Ssh(Ssh.Config(host="box", folder=str(tmp_path / "far")))
    tracemalloc.start()
    try:
        pushed = Path(there.push(local))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < num_bytes / 4
    arrived = (pushed / "inner" / "program").stat()
    assert (arrived.st_size, arrived.st_mode & 0o777) == (num_bytes, 0o755)
    # A line that breaks in the middle ends the push, and what is sent with it.
    client("sys.stdin.buffer.read(100000); sys.stderr.write('it broke\\n'); sys.exit(255)")
    before = threading.active_count()
    with pytest.raises(DeviceError, match="it broke") as caught:
        there.push(local)
    assert caught.value.cause == "gone"
    assert threading.active_count() == before


def test_a_push_that_is_stopped_leaves_nothing_there(
    client: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(LOCAL)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("some")
    far, ask = tmp_path / "far", Ssh.ask

    def stopped(
        self: Ssh, commands: str, given: IO[bytes] | None = None, limit_s: float = 60.0
    ) -> str:
        if given is None:
            return ask(self, commands, given, limit_s)
        # Before the last step, which gives what arrived its name.
        ask(self, f"{commands.rpartition(' && ')[0]}; fi", given, limit_s)
        assert list(far.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(Ssh, "ask", stopped)
    with pytest.raises(KeyboardInterrupt):
        Ssh(Ssh.Config(host="box", folder=str(far))).push(tmp_path / "folder")
    assert not list(far.iterdir())


def test_a_file_that_cannot_be_read_ends_the_push(
    client: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To tar there, a stream that ends between two files is a whole folder."""
    client(LOCAL)
    (tmp_path / "folder").mkdir()
    for name in ("first", "second"):
        (tmp_path / "folder" / name).write_text("some")
    described = tarfile.TarFile.gettarinfo

    def failing(self: tarfile.TarFile, name: Path, arcname: str) -> tarfile.TarInfo:
        if name.name == "second":
            raise OSError("the second is gone")
        return described(self, name, arcname)

    monkeypatch.setattr(tarfile.TarFile, "gettarinfo", failing)
    with pytest.raises(OSError, match="the second is gone"):
        Ssh(Ssh.Config(host="box", folder=str(tmp_path / "far"))).push(tmp_path / "folder")
    assert not list((tmp_path / "far").iterdir())
