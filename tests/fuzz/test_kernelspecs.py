"""``kernel.json`` as anybody may write it who can install a kernelspec."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from enterprise_gateway.core.errors import BrokenKernelSpecError, InvalidRequestError
from enterprise_gateway.services.kernelspecs.reading import CheckedKernelSpec
from enterprise_gateway.services.processproxies.choice import check_argv, process_proxy_config

from .strategies import encoded, json_values, objects_like, text

stanzas = objects_like(class_name=text, config=json_values())
specs = objects_like(
    argv=st.lists(text, max_size=4),
    display_name=text,
    language=text,
    interrupt_mode=st.sampled_from(["signal", "message", "shout"]),
    env=st.dictionaries(text, text, max_size=3),
    metadata=objects_like(process_proxy=stanzas, kernel_provisioner=stanzas, cull_idle_timeout=json_values()),
    mimetype=text,
)


@given(content=st.one_of(encoded(specs), st.builds(lambda rest: b"\xef\xbb\xbf" + rest, encoded(specs))))
def test_a_kernelspec_can_be_used_or_its_error_names_it(content: bytes) -> None:
    """Whatever is in the file: one sentence that names it, or a kernelspec of the right types."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "kernel.json").write_bytes(content)
        try:
            spec: Any = CheckedKernelSpec.from_resource_dir(directory)
        except BrokenKernelSpecError as error:
            spec, sentence = None, str(error)
        if spec is None:
            assert str(Path(directory, "kernel.json")) in sentence
            assert "\n" not in sentence
            return
        assert all(isinstance(word, str) for word in spec.argv)
        assert isinstance(process_proxy_config(spec)["config"], dict)
        try:
            check_argv(spec.argv, "name")
        except InvalidRequestError:
            assert not spec.argv
