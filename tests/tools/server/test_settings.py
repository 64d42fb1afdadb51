from __future__ import annotations

import re
import socket

import pytest

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server.settings import base_config, read_properties, server_settings

PICK = dict.fromkeys(("inference_address", "management_address", "metrics_address"), 0)


@pytest.fixture
def base(tmp_path):
    def write(text: str):
        path = tmp_path / "base.properties"
        path.write_text(text)
        return path

    return write


def settings(base, store, **ports):
    made = server_settings(base, model_store=store, ports={**PICK, **ports})
    return made, read_properties(made.text)


def test_base_is_the_named_file_then_the_folders_own_then_the_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert base_config(None).name == "config.properties"
    assert base_config(None).parent.name == "server"
    (tmp_path / "config.properties").write_text("")
    assert base_config(None) == tmp_path / "config.properties"
    (tmp_path / "mine").write_text("")
    assert base_config(tmp_path / "mine") == tmp_path / "mine"
    with pytest.raises(ServingError, match="nope does not exist"):
        base_config(tmp_path / "nope")


def test_ports_of_zero_are_picked_and_written(base, store):
    made, found = settings(base(""), store)
    assert len({made.inference.port, made.management.port, made.metrics.port}) == 3
    assert found["inference_address"] == made.inference.url == f"http://127.0.0.1:{made.inference.port}"


def test_a_given_port_beats_the_base_and_none_keeps_it(base, store):
    mine = server_settings(
        base("metrics_address=http://127.0.0.1:18773\n"),
        model_store=store,
        ports={"inference_address": 18771, "management_address": 18772},
    )
    assert [mine.inference.port, mine.management.port, mine.metrics.port] == [18771, 18772, 18773]


def test_a_server_on_all_addresses_is_reached_by_loopback(base, store):
    made, found = settings(base("inference_address=http://0.0.0.0:8080\n"), store)
    assert found["inference_address"] == f"http://0.0.0.0:{made.inference.port}"
    assert made.inference.url == f"http://127.0.0.1:{made.inference.port}"


def test_one_port_for_two_purposes_is_refused(base, store):
    with pytest.raises(ServingError, match="management port 18774 is the inference port too"):
        settings(base(""), store, inference_address=18774, management_address=18774)


@pytest.mark.parametrize("port", [-1, 65535, 70000])
def test_a_port_out_of_range_is_refused(base, store, port):
    with pytest.raises(ServingError, match=rf"--port {port} is out of range"):
        settings(base(""), store, inference_address=port)


@pytest.mark.parametrize("address", ["https://127.0.0.1:8443", "unix:/tmp/x.sock", "127.0.0.1:8080"])
def test_addresses_that_serve_cannot_speak_to_are_refused(base, store, address):
    with pytest.raises(ServingError, match="speaks http://HOST:PORT"):
        settings(base(f"inference_address={address}\n"), store)


def test_grpc_listens_on_a_free_port_unless_asked(base, store):
    made, found = settings(base("grpc_inference_port=7070\ngrpc_management_port=18776\n"), store)
    port = made.grpc_inference.port
    assert port not in (0, 7070)
    assert (found["grpc_inference_port"], found["grpc_management_port"]) == (str(port), "18776")
    assert made.grpc_inference.target == f"127.0.0.1:{port}"
    assert made.grpc_management.target == "127.0.0.1:18776"
    made, _ = settings(base("grpc_inference_address=0.0.0.0\n"), store)
    assert made.grpc_inference.host == "0.0.0.0"
    assert made.grpc_inference.target == f"127.0.0.1:{made.grpc_inference.port}"
    _, found = settings(base(""), store, grpc_inference_port=18775)
    assert found["grpc_inference_port"] == "18775"


def test_a_taken_grpc_port_names_its_option(base, store):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with pytest.raises(ServingError, match=r"grpc management port .* --grpc-management-port"):
            settings(base(""), store, grpc_management_port=listening.getsockname()[1])


def test_allowed_urls_are_narrowed_to_the_store(base, tmp_path):
    store = tmp_path / "my (model) store, v2"
    store.mkdir()
    _, found = settings(base(""), store)
    pattern = found["allowed_urls"]
    assert "," not in pattern
    assert re.fullmatch(pattern, f"file://{store}/dlrm.mar")
    assert not re.fullmatch(pattern, "file:///elsewhere/model_store/dlrm.mar")


def test_allowed_urls_of_the_users_own_are_kept(base, store):
    _, found = settings(base("allowed_urls=https://models[.]example[.]com/.*\n"), store)
    assert found["allowed_urls"] == "https://models[.]example[.]com/.*"


def test_tokens_are_on_unless_switched_off(base, store):
    made, found = settings(base(""), store)
    assert made.token_auth
    assert found["disable_token_authorization"] == "false"
    off = server_settings(base(""), model_store=store, ports=PICK, token_auth=False)
    assert not off.token_auth
    assert read_properties(off.text)["disable_token_authorization"] == "true"
    made, found = settings(base("disable_token_authorization=true\n"), store)
    assert not made.token_auth
    assert found["disable_token_authorization"] == "true"


def test_relative_paths_mean_beside_the_base(base, store, tmp_path):
    _, found = settings(base("metrics_config=metrics.yaml\n"), store)
    assert found["metrics_config"] == str(tmp_path / "metrics.yaml")


def test_a_log_configuration_of_the_users_own_is_left_to_work(base, store):
    assert settings(base(""), store)[0].own_log_config
    assert settings(base_config(None), store)[0].own_log_config
    assert not settings(base("vmargs=-Xmx1g -Dlog4j.configurationFile=mine.xml\n"), store)[0].own_log_config
