"""The board and the alert rules: they name what is exported, and work in a real Prometheus where there is one."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml
from support.monitoring import DECLARATION, counted_service, reference_of, rows

from dlrm_factory.host.worker_file import worker_folder
from dlrm_factory.monitoring.families import CODES, ENGINES, FAMILIES
from dlrm_factory.requests.request import Request
from dlrm_factory.tools.monitoring.exporter import DERIVED, Exporter
from dlrm_factory.tools.monitoring.labels import join_labels
from dlrm_factory.tools.monitoring.serving import MetricsServer
from dlrm_factory.tools.monitoring.status import DRIFT_ALARM, MIN_DRIFT_SAMPLES
from dlrm_factory.tools.server.settings import free_ports

DEPLOY = Path(__file__).parents[2] / "scripts" / "deploy"
BOARD = DEPLOY / "grafana" / "board.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
# Prometheus's own, and TorchServe's, which `GET /metrics` gives behind ours.
OTHERS = {"up": {"job"}}
TORCHSERVE = {
    "ts_queue_latency_microseconds": {"model_name", "model_version"},
    "ts_inference_requests_total": {"model_name", "model_version"},
}
BY_SCRAPE = {"job", "instance", "le"}
KEYWORDS = {
    "sum",
    "by",
    "on",
    "and",
    "abs",
    "time",
    "rate",
    "increase",
    "topk",
    "scalar",
    "histogram_quantile",
}
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"


def exported():
    """Labels by the name of every series that the code exports."""
    found = {}
    for family in FAMILIES:
        labels = {"model", "version", *family.labels}
        names = [f"{family.name}_{part}" for part in ("bucket", "sum", "count")]
        found |= dict.fromkeys(names if family.kind == "histogram" else [family.name], labels)
    return found | {name: {"model", "version", *labels} for name, (_, labels) in DERIVED.items()}


def board_queries():
    panels = json.loads(BOARD.read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())]


def alert_queries():
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [(rule["alert"], rule["expr"]) for group in groups for rule in group["rules"]]


def problems(query):
    """Series and labels of a query that nothing exports."""
    known = exported() | OTHERS | TORCHSERVE
    text = re.sub(r'"[^"]*"', '""', query)
    labels = {
        name for part in re.findall(r"\{([^}]*)\}", text) for name in re.findall(rf"({NAME})\s*[=!]", part)
    }
    grouped = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", text)
    labels |= {name.strip() for part in grouped for name in part.split(",")}
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", text)
    text = re.sub(r"\b(?:by|on)\s*\([^)]*\)", " ", text)
    series = {
        name for name in re.findall(rf"(?<![0-9.$])\b{NAME}\b", text) if name not in KEYWORDS and name != "e6"
    }
    allowed = BY_SCRAPE.union(*(known.get(name, set()) for name in series))
    return sorted((series - known.keys()) | (labels - allowed))


@pytest.mark.parametrize(("title", "query"), [*board_queries(), *alert_queries()])
def test_every_series_and_label_is_exported(title, query):
    assert problems(query) == []


@pytest.mark.parametrize(
    "query",
    ["dlrm_wrokers > 0", "sum by (shpae) (rate(dlrm_samples_total[5m]))", 'dlrm_workers{engin="eager"}'],
)
def test_a_misspelt_name_is_seen(query):
    assert len(problems(query)) == 1


def test_values_of_labels_are_exported():
    text = BOARD.read_text() + ALERTS.read_text()
    assert set(re.findall(r'engine=\\?"(\w+)\\?"', text)) <= set(ENGINES)
    classes = set(re.findall(r'code=~\\?"(\d)\.\.', text))
    assert classes
    assert classes <= {code[0] for code in CODES}


def test_the_board_is_grouped_as_a_person_asks():
    panels = json.loads(BOARD.read_text())["panels"]
    questions = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert questions == ["Is it up?", "Is it fast?", "Is it right?", "Is it fresh?"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["description"] for panel in panels if panel["type"] != "row")
    taken = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(set(taken)) == len(taken)


def test_alerts_have_the_documented_bounds():
    by_name = dict(alert_queries())
    assert f"dlrm_feature_psi > {DRIFT_ALARM:g}" in by_name["DLRMFeatureDrift"]
    assert f"dlrm_drift_window_samples >= {MIN_DRIFT_SAMPLES}" in by_name["DLRMFeatureDrift"]
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert [name for name in by_name if f"`{name}`" not in documented] == []


def test_every_metric_is_documented():
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    names = [*(family.name for family in FAMILIES), *DERIVED]
    assert [name for name in names if f"`{name}`" not in documented] == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "words", ["check rules alerts.yml", "check config prometheus.yml", "test rules alerts_test.yml"]
)
def test_promtool_takes_the_files(words):
    done = subprocess.run(
        ["promtool", *words.split()], cwd=ALERTS.parent, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


class TorchServe(http.server.BaseHTTPRequestHandler):
    """Counters of TorchServe's, as its metrics address gives them."""

    count = 0

    def do_GET(self):
        type(self).count += 10
        labels = '{model_name="shop",model_version="default",hostname="h",}'
        lines = [f"# TYPE {name} counter\n{name}{labels} {self.count}.0\n" for name in TORCHSERVE]
        self.send_response(200)
        self.end_headers()
        self.wfile.write("".join(lines).encode())

    def log_message(self, *arguments):
        pass


def ask(port, query):
    """Series that a query gives, without those that are not a number."""
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=10) as response:
        found = json.load(response)["data"]["result"]
    return [series for series in found if series["value"][1] != "NaN"]


def send(service, turn):
    for row in rows(20, turn):
        service.handle([Request(json.dumps({"instances": [row]}).encode(), id=f"{turn}")])
    tags = {**rows(1, turn)[0], "tags": [1, 2, 3, 4]}
    service.handle([Request(json.dumps({"instances": [tags, {}]}).encode())])
    service.handle([Request(b"nonsense")])


# In a model without a vocabulary, or without an error of the server.
EMPTY = {"Unknown ids and truncated bags": 1}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
def test_every_query_of_the_board_gives_series_in_a_real_prometheus(tmp_path):
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "tables.bin").write_bytes(b"\0" * 4096)
    service, observer = counted_service(
        worker_folder(str(tmp_path / "archive"), tmp_path),
        reference=reference_of(2000),
        model_dir=str(tmp_path / "archive"),
        goldens=16,
        archive_created=time.time() - 3600,
        clock=time.time,
    )
    observer.start(every_s=0.2)
    send(service, 0)
    observer.flush()
    labels = tmp_path / "labels.csv"
    labels.write_text("request_id,label\n0,1\n")
    torchserve = http.server.ThreadingHTTPServer(("127.0.0.1", 0), TorchServe)
    threading.Thread(target=torchserve.serve_forever, daemon=True).start()
    exporter = Exporter(tmp_path, torchserve=f"http://127.0.0.1:{torchserve.server_address[1]}")
    with MetricsServer("127.0.0.1", 0, exporter) as server:
        labels.write_text("request_id,label\n0,1\n1,0\n")
        send(service, 1)
        observer.flush()
        join_labels(labels, temporary=tmp_path)
        config = yaml.safe_load((ALERTS.parent / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(ALERTS)]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}"]}]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        (port,) = free_ports(1)
        words = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        words += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        prometheus = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL)
        try:
            missing = wait_for_series(port, service)
        finally:
            prometheus.terminate()
            prometheus.wait(timeout=30)
    observer.stop()
    torchserve.shutdown()
    torchserve.server_close()
    assert missing == []


def wait_for_series(port, service, patience=60.0):
    """Titles of the panels that have no series in the end, for each query without one."""
    queries = [
        (title, re.sub(r"\$(?:model|version)", ".*", query.replace("$__rate_interval", "10s")))
        for title, query in board_queries()
    ]
    turn, end, missing = 2, time.monotonic() + patience, []
    while time.monotonic() < end:
        send(service, turn)
        turn += 1
        time.sleep(0.5)
        try:
            without = [title for title, query in queries if not ask(port, query)]
        except OSError:
            continue  # it has yet to start
        missing = [title for title in without if without.count(title) > EMPTY.get(title, 0)]
        if not missing:
            return []
    return missing


def test_the_model_of_these_tests_has_no_vocabulary():
    assert DECLARATION.vocabulary_tables == []
