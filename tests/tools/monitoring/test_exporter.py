"""Text for Prometheus, read back by its own parser."""

from __future__ import annotations

import http.server
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.monitoring import NOW

from dlrm_factory.errors import ServingError
from dlrm_factory.monitoring.families import FAMILIES
from dlrm_factory.tools.monitoring.exporter import DERIVED, Exporter
from dlrm_factory.tools.monitoring.reading import quantile, read_models
from dlrm_factory.tools.monitoring.serving import MetricsServer

DEAD = 4_000_000  # over every pid


def samples(text):
    """Values by name and labels, without the model's."""
    return {
        (sample.name, *sorted(v for k, v in sample.labels.items() if k not in ("model",))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counts_of_all_workers_add_up_also_of_those_that_ended(work, bodies, reference):
    work(bodies, pid=DEAD)
    temporary = work([*bodies, {"instances": [{"item": 900}]}])
    found = samples(Exporter(temporary, clock=lambda: NOW).text())
    assert found["dlrm_requests_total", "1.0", "200", "rows"] == 40
    assert found["dlrm_requests_total", "1.0", "400", "unread"] == 1
    assert found["dlrm_samples_total", "1.0", "rows"] == 40
    assert found["dlrm_batch_duration_seconds_count", "1.0"] == 41
    assert found["dlrm_score_count", "1.0"] == 40
    assert 0 < found["dlrm_score_sum", "1.0"] < 40
    # But only one of the workers lives.
    assert found["dlrm_workers", "1.0", "eager"] == 1
    assert found["dlrm_goldens", "1.0"] == 16
    assert found["dlrm_drift_reference_samples", "1.0"] == reference.samples


def test_histograms_are_cumulative_and_end_with_all(work, bodies):
    text = Exporter(work(bodies), clock=lambda: NOW).text()
    for family in text_string_to_metric_families(text):
        if family.type == "histogram" and family.name == "dlrm_batch_duration_seconds":
            counts = [s.value for s in family.samples if s.name.endswith("_bucket")]
            assert counts == sorted(counts)
            assert counts[-1] == len(bodies)
            return
    pytest.fail("there is no histogram")


def test_versions_are_apart_and_a_removed_one_is_gone(work, bodies, tmp_path):
    work(bodies)
    temporary = work(bodies[:5], version="2.0", pid=DEAD)
    assert [(each.model, each.version) for each in read_models(temporary)] == [
        ("shop", "1.0"),
        ("shop", "2.0"),
    ]
    # TorchServe removes the folder of a version that is no longer registered.
    (tmp_path / "archive-2.0" / "tables.bin").unlink()
    (tmp_path / "archive-2.0").rmdir()
    assert [each.version for each in read_models(temporary)] == ["1.0"]


def test_every_family_has_help_and_a_name_by_the_conventions(work, bodies):
    found = {each.name: each for each in text_string_to_metric_families(Exporter(work(bodies)).text())}
    for family in FAMILIES:
        name = family.name.removesuffix("_total")
        assert found[name].documentation == family.help
        assert found[name].type == family.kind
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert ("seconds" in family.name) == ("ime" in family.help)
    assert set(DERIVED) <= set(found)
    assert not any(unit in name for name in found for unit in ("milli", "micro", "_ms", "_mb"))


def test_drift_and_memory(work, bodies):
    found = samples(Exporter(work(bodies * 3), clock=lambda: NOW).text())
    assert found["dlrm_drift_window_samples", "1.0"] == 60
    assert found["dlrm_feature_psi", "1.0", "price"] > 0
    assert found["dlrm_score_psi", "1.0"] > 0
    assert found["dlrm_tables_size_bytes", "1.0"] == 4096
    assert found["dlrm_workers_private_memory_bytes", "1.0"] > 1e6


def test_broken_files_and_strangers_are_passed_over(work, bodies, tmp_path):
    temporary = work(bodies)
    (folder,) = tmp_path.glob("dlrm-workers-*/*")
    (folder / "7.metrics").write_bytes(b"DLRMMET1" + b"\xff" * 100)
    (folder / "8.metrics").write_text("")
    assert samples(Exporter(temporary).text())["dlrm_samples_total", "1.0", "rows"] == 20


def test_without_workers_there_are_no_series(tmp_path):
    assert samples(Exporter(tmp_path).text()) == {}


class TorchServe(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"# TYPE Requests2XX counter\nRequests2XX 7.0\n")

    def log_message(self, *arguments):
        pass


@pytest.fixture
def torchserve():
    with http.server.HTTPServer(("127.0.0.1", 0), TorchServe) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_torchserves_own_metrics_follow_ours(work, bodies, torchserve):
    found = samples(Exporter(work(bodies), torchserve=torchserve).text())
    assert (found["Requests2XX_total",], found["dlrm_samples_total", "1.0", "rows"]) == (7, 20)


def test_a_torchserve_that_does_not_answer_costs_only_its_own(work, bodies):
    found = samples(Exporter(work(bodies), torchserve="http://127.0.0.1:9").text())
    assert found["dlrm_samples_total", "1.0", "rows"] == 20


def test_metrics_are_served_and_nothing_else_is(work, bodies):
    with MetricsServer("127.0.0.1", 0, Exporter(work(bodies))) as server:
        url = f"http://127.0.0.1:{server.port}"
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
            assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert samples(response.read().decode())["dlrm_samples_total", "1.0", "rows"] == 20
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/other", timeout=10)
        with pytest.raises(ServingError, match="cannot be used"):
            MetricsServer("127.0.0.1", server.port, Exporter(None))


def test_quantiles_by_hand():
    import numpy as np

    # 2 up to 1, 6 up to 2, 2 above: the median is half way through the second bucket.
    assert quantile(0.5, np.array([2.0, 6.0, 2.0, 99.0]), (1.0, 2.0)) == pytest.approx(1.5)
    assert quantile(0.99, np.array([2.0, 6.0, 2.0, 99.0]), (1.0, 2.0)) == 2.0
    assert quantile(0.5, np.zeros(4), (1.0, 2.0)) is None
