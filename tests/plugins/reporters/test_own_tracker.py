"""The tracker that docs/trackers.md shows, as it is printed."""

import re
import sys
import types
from types import SimpleNamespace

import pytest
from helpers_cli import ROOT, call
from helpers_recorded import RecordedRun

SHOWN = r"<!-- tracker: mlflow = MlflowTracker -->\n```python\n(.*?)```"


class FakeClient:
    """As much of MLflow's client as the page uses; MLflow itself takes over a hundred megabytes."""

    experiments, runs = {}, {}

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=self.experiments.setdefault(name, name))

    def search_runs(self, experiment_ids, filter_string=""):
        tag, value = re.fullmatch(r"tags\.(\w+) = '(\w+)'", filter_string).groups()
        return [
            r
            for r in self.runs.values()
            if r.experiment in experiment_ids and r.tags[tag] == value and not r.is_deleted
        ]

    def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
        run_id = f"{len(self.runs):032}"
        info = SimpleNamespace(run_id=run_id, run_name=run_name, status="RUNNING")
        run = SimpleNamespace(info=info, experiment=experiment_id, tags=tags, is_deleted=False)
        run.data, run.history = SimpleNamespace(params={}, tags=run.tags), {}
        self.runs[run_id] = run
        return run

    def delete_run(self, run_id):
        self.runs[run_id].is_deleted = True

    def log_param(self, run_id, key, value):
        assert len(value) <= 6000
        self.runs[run_id].data.params[key] = value

    def log_metric(self, run_id, key, value, timestamp=None, step=None):
        made = SimpleNamespace(key=key, value=value, timestamp=timestamp, step=step)
        self.runs[run_id].history.setdefault(key, []).append(made)

    def get_metric_history(self, run_id, key):
        return self.runs[run_id].history[key]

    def set_tag(self, run_id, key, value):
        self.runs[run_id].data.tags[key] = value

    def set_terminated(self, run_id, status=None):
        self.runs[run_id].info.status = status


@pytest.fixture(params=["fake", "real"])
def client(request, tmp_path, monkeypatch):
    """MLflow's client: a small one of the same form, and the real one where it is installed."""
    if request.param == "real":
        mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny runs this test")
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
        return mlflow.MlflowClient()
    monkeypatch.setattr(FakeClient, "experiments", {})
    monkeypatch.setattr(FakeClient, "runs", {})
    module = types.ModuleType("mlflow")
    module.MlflowClient, module.set_experiment = FakeClient, FakeClient().get_experiment_by_name
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return FakeClient()


def test_the_tracker_of_the_page_sends_a_run(client, shelf, capsys, tmp_path):
    """Once, also if it is sent again after a resume."""
    (code,) = re.findall(SHOWN, (ROOT / "docs" / "trackers.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    space = {"__name__": "documented"}
    exec(code, space)
    shelf.install("reporter", "mlflow", space["MlflowTracker"])
    run = RecordedRun(tmp_path)
    run.steps(1, 2, 3)
    upload = ("runs", "upload", "run", "--to", "mlflow", "--runs-dir", tmp_path / "runs")
    assert call(capsys, *upload).out == "run: sent 3 rows\n"
    assert call(capsys, *upload).out == "run: everything is there already\n"
    run.go_back(to=2)
    run.steps(3, loss=1.0)
    assert call(capsys, *upload).out == "run: sent 3 rows\n"
    experiment = client.get_experiment_by_name("altcore").experiment_id
    (found,) = client.search_runs([experiment], f"tags.altcore = '{run.run_id}'")
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 4.875), (2, 4.75), (3, 1.0)]
    assert history[1].timestamp - history[0].timestamp == 500
    assert found.info.status == "FAILED"  # it has no summary: it was killed
    assert found.data.params["seed"] == str(run.record.config["seed"])
