"""The marks by which launchers say, before they are launched, which payload version they speak."""

from __future__ import annotations

import os

import pytest

from enterprise_gateway.core.errors import KernelLaunchError
from enterprise_gateway.services.processproxies.launchers import MARKED_BYTES, marked_version
from enterprise_gateway.services.processproxies.processproxy import RemoteProcessProxy

MARK = "# eg-payload-version: 2\n"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (MARK, 2),
        (f"#!/bin/sh\n{MARK}exec java", 2),
        ("rem eg-payload-version: 1\n", 1),
        ("// eg-payload-version:2", 2),
        ("# my-eg-payload-versions: 2", 1),
        ("# eg-payload-version: 20", 1),
        (" " * MARKED_BYTES + MARK, 1),
        ("\0\xff" * 100, 1),
        ("", 1),
    ],
)
def test_a_mark_is_found_near_the_beginning_of_a_file(tmp_path, text, version):
    """Whatever the language's comments look like; another number is no mark of a version that there is."""
    file = tmp_path / "launch"
    file.write_text(text)
    assert marked_version(["python", str(file), "--kernel-id", "{kernel_id}"], "") == version


def test_a_mark_is_looked_for_in_the_files_that_argv_names(tmp_path, monkeypatch):
    """By absolute paths, beside the kernelspec too; what is no file of this machine is passed over."""
    (tmp_path / "launch.py").write_text(MARK)
    monkeypatch.chdir(tmp_path)
    assert marked_version(["python", "{resource_dir}/launch.py"], str(tmp_path)) == 2
    assert marked_version(["python", "launch.py"], str(tmp_path)) == 1, "that is another directory's in the end"
    os.mkfifo(tmp_path / "pipe")
    for word in ("pipe", "missing", "", "launch.py/x", "x" * 5000, "nul\0"):
        assert marked_version([f"{tmp_path}/{word}"], "") == 1
    assert marked_version([], "") == 1


def test_a_file_that_changes_is_read_again(tmp_path):
    """What was found is kept only as long as the file is the same."""
    file = tmp_path / "launch.py"
    for text, version in (("old", 1), (MARK, 2), ("# older still", 1)):
        file.write_text(text)
        assert marked_version([str(file)], "") == version


def test_the_kernelspecs_word_is_stronger_than_a_mark(tmp_path):
    """It is the administrator's, who may know of a launcher behind a marked script that is older."""
    file = tmp_path / "run.sh"
    file.write_text(MARK)
    version = RemoteProcessProxy.launcher_version
    assert version([str(file)], "", {}) == 2
    assert version([str(file)], "", {"payload_version": 1}) == 1
    assert version(["x"], "", {"payload_version": "2"}) == 2
    with pytest.raises(KernelLaunchError, match="must be 1 or 2"):
        version(["x"], "", {"payload_version": 7})
