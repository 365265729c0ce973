"""The command that installs the kernelspecs which come with the gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpec

from enterprise_gateway.services.kernelspecs.install import main, shipped_kernelspecs
from tests.support.gateway import running_gateway

BUILT_FROM_SOURCE = ("scala_distributed", "spark_scala_yarn_client")  # their jars are; see the page for operators


def test_every_kernelspec_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """`list` shows each by the name that clients use, with what users see."""
    assert main(["list"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(lines) == set(shipped_kernelspecs())
    assert lines["python_distributed"] == "Python 3 (distributed)"


@pytest.mark.parametrize("name", sorted(shipped_kernelspecs()))
def test_an_installed_kernelspec_is_complete(name: str, tmp_path: Path) -> None:
    """It is a directory of its own without links, and what its command names is there and can be run."""
    assert main(["install", name, "--prefix", str(tmp_path)]) == 0
    directory = tmp_path / "share/jupyter/kernels" / name
    spec = KernelSpec.from_resource_dir(str(directory))
    assert spec.metadata["process_proxy"]["config"]["payload_version"] == 2
    assert not [path for path in directory.rglob("*") if path.is_symlink()]
    assert (directory / "logo-64x64.png").is_file()
    named = [Path(word.format(resource_dir=directory)) for word in spec.argv if word.startswith("{resource_dir}")]
    assert named
    for path in named:
        assert path.is_file()
        assert path.suffix in {".py", ".R"} or os.access(path, os.X_OK)
    if (directory / "bin").is_dir():
        assert (directory / "bin/options.sh").is_file()
        assert (directory / "scripts").is_dir() or name in BUILT_FROM_SOURCE


def test_one_that_is_installed_is_replaced_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second time needs --replace, which leaves nothing of the first."""
    where = ["--prefix", str(tmp_path)]
    assert main(["install", "python_distributed", *where]) == 0
    directory = tmp_path / "share/jupyter/kernels/python_distributed"
    (directory / "mine").touch()
    assert main(["install", "python_distributed", *where]) == 1
    assert "--replace" in capsys.readouterr().err
    assert (directory / "mine").exists()
    assert main(["install", "python_distributed", "--replace", *where]) == 0
    assert not (directory / "mine").exists()
    assert [path.name for path in directory.parent.iterdir()] == ["python_distributed"]


def test_a_name_that_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit status is 2, the message lists what there is, and nothing was installed."""
    with pytest.raises(SystemExit) as exit_info:
        main(["install", "python_distributed", "nonsense", "--prefix", str(tmp_path)])
    assert exit_info.value.code == 2
    assert "no kernelspec nonsense; there are" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_options_end_up_in_the_kernel_json(tmp_path: Path) -> None:
    """Interpreter, hosts, variables, display name and name are the installer's to choose."""
    options = ["--python", "/opt/python", "--remote-hosts", "a,b", "--env", "SPARK_HOME=/spark", "--env", "X=a=b"]
    names = ["--name", "Mine", "--display-name", "My Spark", "--prefix", str(tmp_path)]
    assert main(["install", "spark_python_yarn_client", *options, *names]) == 0
    spec = KernelSpec.from_resource_dir(str(tmp_path / "share/jupyter/kernels/mine"))
    assert spec.display_name == "My Spark"
    assert (spec.env["SPARK_HOME"], spec.env["X"], spec.env["PYSPARK_PYTHON"]) == ("/spark", "a=b", "/opt/python")
    assert spec.metadata["process_proxy"]["config"] == {"payload_version": 2, "remote_hosts": "a,b"}


async def test_kernelspecs_installed_for_a_user_start_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--user` puts it where the gateway of that user looks; its kernels run on the hosts it names."""
    monkeypatch.setenv("EG_RESPONSE_IP", "127.0.0.1")
    command = [sys.executable, "-m", "enterprise_gateway.services.kernelspecs.install", "install", "python_distributed"]
    subprocess.run([*command, "--user", "--python", sys.executable, "--remote-hosts", "127.0.0.1"], check=True)
    async with running_gateway() as gateway:
        model = (await gateway.call("/api/kernelspecs"))["kernelspecs"]["python_distributed"]
        assert model["spec"]["display_name"] == "Python 3 (distributed)"
        kernel_id = await gateway.start_kernel("python_distributed")
        websocket = await gateway.websocket(kernel_id)
        assert (await websocket.execute("6 * 7"))[0] == "42"
        await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)


def test_the_shipped_files_are_valid() -> None:
    """Each kernel.json parses and uses only placeholders that the gateway fills."""
    known = {"resource_dir", "kernel_id", "port_range", "response_address", "public_key", "connection_file"}
    known |= {"transport_encryption", "prefix"}
    for path in shipped_kernelspecs().values():
        for word in json.loads((path / "kernel.json").read_text())["argv"]:
            assert not word.startswith("{") or word[1 : word.index("}")] in known, (path, word)


def test_every_kernelspec_is_part_of_the_wheel() -> None:
    """pyproject.toml has a line for each directory of etc/kernelspecs."""
    repository = Path(__file__).parents[2]
    lines = (repository / "pyproject.toml").read_text().splitlines()
    for path in (repository / "etc/kernelspecs").iterdir():
        assert f'"etc/kernelspecs/{path.name}" = "enterprise_gateway/etc/kernelspecs/{path.name}"' in lines
