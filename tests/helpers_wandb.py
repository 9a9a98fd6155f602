"""A W&B server on loopback: as much of one as the client in constraints.txt asks for.

It keeps what is written to it, answers when it is read, and can be told to fail.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from helpers_wandb_artifacts import ArtifactAnswers

ENTITY = "somebody"
KEY = "0" * 40
HISTORY, SUMMARY, EVENTS = "wandb-history.jsonl", "wandb-summary.json", "wandb-events.jsonl"
CREATED = "2026-01-01T00:00:00"


@define
class StoredRun:
    """A run as the server has it."""

    entity: str
    project: str
    id: str
    display_name: str = ""
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(factory=list)
    config: dict[str, Any] = field(factory=dict)
    """As the client sent it: ``{key: {"value": ...}}``."""
    summary: dict[str, Any] = field(factory=dict)
    streams: dict[str, list[str]] = field(factory=dict)
    """The lines of each streamed file."""
    files: dict[str, bytes] = field(factory=dict)
    exit_code: int | None = None
    is_complete: bool = False

    @property
    def history(self) -> list[dict[str, Any]]:
        """The logged rows, as they came."""
        return [json.loads(line) for line in self.streams.get(HISTORY, [])]

    @property
    def values(self) -> dict[str, Any]:
        """The configuration by plain keys, without the client's own."""
        return {k: v["value"] for k, v in self.config.items() if k != "_wandb"}

    @property
    def state(self) -> str:
        """As W&B names it."""
        if not self.is_complete:
            return "running"
        return "failed" if self.exit_code else "finished"


@define(eq=False)
class WandbServer(ArtifactAnswers):
    """Listens on a free port, at ``url``; use it as a context.

    ``fault`` makes every answer bad: ``"closed"`` closes the connection, ``"500"`` is an error of
    the server, ``"malformed"`` is no JSON that the client knows, and ``"hang"`` answers only when
    the server is closed.
    """

    runs: dict[str, StoredRun] = field(factory=dict)
    """By id."""
    alerts: list[dict[str, Any]] = field(factory=list)
    asked: list[str] = field(factory=list)
    """The operations and paths that were asked for, in order."""
    unknown: dict[str, str] = field(factory=dict)
    """Queries that the server does not know, by operation."""
    fault: str | None = None
    on_asked_cache: Callable[[str], None] | None = None
    """Told each operation and path before it is answered."""
    failed: int = field(init=False, default=0)
    """Requests that met a fault."""
    closing: threading.Event = field(init=False, factory=threading.Event)
    http: ThreadingHTTPServer = field(init=False)

    def __enter__(self) -> WandbServer:
        handler = type("Bound", (_Handler,), {"wandb": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which the client finds the server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def note(self, asked: str) -> None:
        """Keep what was asked for."""
        self.asked.append(asked)
        if self.on_asked_cache is not None:
            self.on_asked_cache(asked)

    # What is asked for, each by the name of its operation ------------------------------------

    def answer(self, operation: str, query: str, given: Mapping[str, Any]) -> Any:
        """Return the data of a GraphQL operation."""
        words = re.sub("(?<=[a-z])(?=[A-Z])", "_", operation).lower()
        method = getattr(self, f"on_{words}", None)
        if method is None:
            self.unknown[operation] = query
            return None
        return method(given)

    def on_viewer(self, _: Mapping[str, Any]) -> Any:
        return {"viewer": _viewer()}

    on_get_viewer = on_viewer

    def on_get_default_entity(self, _: Mapping[str, Any]) -> Any:
        return {"viewer": _viewer()}

    def on_server_features_query(self, _: Mapping[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def on_organization_core_weave_organization_id(self, _: Mapping[str, Any]) -> Any:
        return {"entity": {"organization": None}}

    def on_run_resume_status(self, given: Mapping[str, Any]) -> Any:
        run = self.runs.get(given["name"])
        project = given.get("project") or "uncategorized"
        entity = {"id": "E", "name": given.get("entity") or ENTITY}
        bucket = None
        if run is not None:
            rows, events = run.streams.get(HISTORY, []), run.streams.get(EVENTS, [])
            bucket = {
                **_node(run),
                "logLineCount": 0,
                "eventsLineCount": len(events),
                "historyTail": json.dumps(rows[-1:]),
                "eventsTail": json.dumps(events[-1:]),
                # Without the client's telemetry in it, a run counts as never begun.
                "wandbConfig": json.dumps({"t": 1}),
            }
        return {"model": {"id": "P", "name": project, "entity": entity, "bucket": bucket}}

    def on_upsert_bucket(self, given: Mapping[str, Any]) -> Any:
        name, is_new = given["name"], given["name"] not in self.runs
        if is_new:
            entity, project = given.get("entity") or ENTITY, given.get("project")
            self.runs[name] = StoredRun(entity, project or "uncategorized", name)
        run = self.runs[name]
        run.is_complete = False
        run.display_name = given.get("displayName") or run.display_name or name
        run.group = given.get("groupName") or run.group
        run.job_type = given.get("jobType") or run.job_type
        run.tags = given["tags"] if given.get("tags") is not None else run.tags
        if given.get("config"):
            run.config = json.loads(given["config"])
        if given.get("summaryMetrics"):
            run.summary = json.loads(given["summaryMetrics"])
        entity = {"id": "E", "name": run.entity}
        bucket = {**_node(run), "project": {"id": "P", "name": run.project, "entity": entity}}
        return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}

    def on_notify_scriptable_run_alert(self, given: Mapping[str, Any]) -> Any:
        self.alerts.append(dict(given))
        return {"notifyScriptableRunAlert": {"success": True}}

    def on_create_run_files(self, given: Mapping[str, Any]) -> Any:
        run = self.runs[given["run"]]
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/{run.id}/{name}"}
            for name in given["files"]
        ]
        return {"createRunFiles": {"runID": _global_id(run), "uploadHeaders": [], "files": files}}

    # Reading ---------------------------------------------------------------------------------

    def on_runs(self, given: Mapping[str, Any]) -> Any:
        wanted = json.loads(given.get("filters") or "{}")
        found = [r for r in self.runs.values() if r.project == given["project"]]
        found = [r for r in found if r.entity == given["entity"] and _fits(r, wanted)]
        if not found and all(r.project != given["project"] for r in self.runs.values()):
            return {"project": None}
        first = int(given.get("cursor") or 0)
        last = min(first + int(given.get("perPage") or 50), len(found))
        edges = [
            {"node": {**_node(run), "projectId": "1"}, "cursor": str(first + i + 1)}
            for i, run in enumerate(found[first:last])
        ]
        page = {"endCursor": str(last), "hasNextPage": last < len(found)}
        runs = {"edges": edges, "pageInfo": page}
        return {
            "project": {
                "internalId": "1",
                "runCount": len(found),
                "readOnly": False,
                "runs": runs,
            }
        }

    def on_run(self, given: Mapping[str, Any]) -> Any:
        return self._of_run(given, lambda run: {**_node(run), "projectId": "1"})

    def on_run_full_history(self, given: Mapping[str, Any]) -> Any:
        def sampled(run: StoredRun) -> dict[str, Any]:
            rows = run.streams.get(HISTORY, [])
            every = max(1, -(-len(rows) // int(given.get("samples") or 500)))
            return {"history": rows[::every], "events": run.streams.get(EVENTS, [])}

        return self._of_run(given, sampled)

    def on_run_sampled_history(self, given: Mapping[str, Any]) -> Any:
        def sampled(run: StoredRun) -> dict[str, Any]:
            specs = [json.loads(spec) for spec in given["specs"]]
            found = [
                [
                    {k: row[k] for k in spec["keys"]}
                    for row in run.history
                    if all(k in row for k in spec["keys"])
                ]
                for spec in specs
            ]
            return {"sampledHistory": found}

        return self._of_run(given, sampled)

    def on_sampled_history_page(self, given: Mapping[str, Any]) -> Any:
        def page(run: StoredRun) -> dict[str, Any]:
            spec = json.loads(given["spec"])
            rows = [r for r in run.history if spec["minStep"] <= r["_step"] <= spec["maxStep"]]
            found = [
                {k: r[k] for k in spec["keys"]} for r in rows if all(k in r for k in spec["keys"])
            ]
            return {"sampledHistory": [found]}

        return self._of_run(given, page)

    def on_run_history_keys(self, given: Mapping[str, Any]) -> Any:
        return self._of_run(given, lambda run: {"historyKeys": _history_keys(run)})

    def on_run_parquet_history(self, given: Mapping[str, Any]) -> Any:
        nothing = {"parquetUrls": [], "liveData": []}
        return self._of_run(given, lambda run: {"parquetHistory": nothing})

    def on_history_page(self, given: Mapping[str, Any]) -> Any:
        def page(run: StoredRun) -> dict[str, Any]:
            low, high = int(given["minStep"]), int(given["maxStep"])
            lines = run.streams.get(HISTORY, [])
            found = [
                x for x, row in zip(lines, run.history, strict=True) if low <= row["_step"] < high
            ]
            return {"history": found}

        return self._of_run(given, page)

    def on_run_files(self, given: Mapping[str, Any]) -> Any:
        def files(run: StoredRun) -> dict[str, Any]:
            names = given["fileNames"] or sorted(run.files)
            pattern = re.escape(given.get("pattern") or "%").replace("%", ".*")
            found = [n for n in names if n in run.files and re.fullmatch(pattern, n)]
            edges = [{"node": self._file(run, name), "cursor": name} for name in found]
            page = {"endCursor": None, "hasNextPage": False}
            return {"fileCount": len(found), "files": {"edges": edges, "pageInfo": page}}

        return self._of_run(given, files)

    def _file(self, run: StoredRun, name: str) -> dict[str, Any]:
        url = f"{self.url}/upload/{run.id}/{name}"
        size = len(run.files[name])
        about = {"id": name, "name": name, "url": url, "directUrl": url, "sizeBytes": str(size)}
        return {**about, "mimetype": None, "updatedAt": CREATED, "md5": None}

    def _of_run(self, given: Mapping[str, Any], told: Any) -> Any:
        run = self.runs.get(given.get("name") or given.get("runName") or given.get("run") or "")
        return {"project": {"internalId": "1", "run": told(run) if run else None}}

    # Streams and files -----------------------------------------------------------------------

    def stream(self, run: StoredRun, sent: Mapping[str, Any]) -> dict[str, Any]:
        """Take lines of streamed files, each from an offset, and how the run ended."""
        for name, chunk in (sent.get("files") or {}).items():
            if name == SUMMARY:
                run.summary = json.loads(chunk["content"][-1])
                continue
            kept = run.streams.setdefault(name, [])
            kept[int(chunk["offset"]) :] = chunk["content"]
        if sent.get("complete"):
            run.is_complete, run.exit_code = True, sent.get("exitcode")
        return {"limits": {}}


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, and has the server answer it."""

    protocol_version = "HTTP/1.1"
    wandb: WandbServer

    def log_message(self, *_: object) -> None:
        """Write nothing."""

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        fault = self.wandb.fault
        self.wandb.failed += fault is not None
        if fault == "hang":
            self.wandb.closing.wait()
        if fault in ("closed", "hang"):
            self.close_connection = True
            return
        if fault == "500":
            self._reply(500, b"the server is broken")
        elif fault == "malformed":
            self._reply(200, b'{"data": {"upsertBucket": 1, "viewer": [}')
        else:
            self._reply(*self._answer(body))

    def _answer(self, body: bytes) -> tuple[int, bytes]:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts == ["graphql"]:
            sent = json.loads(body)
            name = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
            operation = name.group(1) if name else ""
            self.wandb.note(operation)
            found = self.wandb.answer(operation, sent["query"], sent.get("variables") or {})
            if found is None:
                unknown = {"errors": [{"message": f"no operation {operation}"}]}
                return 200, json.dumps(unknown).encode()
            return 200, json.dumps({"data": found}).encode()
        self.wandb.note(self.path)
        if parts[0] == "files" and parts[-1] == "file_stream":
            run = self.wandb.runs[parts[3]]
            return 200, json.dumps(self.wandb.stream(run, json.loads(body))).encode()
        if parts[0] == "artifacts":
            self.wandb.keep_artifact(parts[1], "/".join(parts[2:]), body)
            return 200, b""
        if parts[0] == "upload":
            run = self.wandb.runs[parts[1]]
            if self.command == "PUT":
                run.files["/".join(parts[2:])] = body
                return 200, b""
            return 200, run.files["/".join(parts[2:])]
        return 404, b"{}"

    do_GET = do_POST = do_PUT = _handle  # noqa: N815 (the names that http.server calls)

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def upload_alone(run: Path) -> str:
    """Upload a run in a process of its own, which the client may change; returns what it says."""
    code = (
        "import sys; from pathlib import Path; from altcore.plugin import read_run;"
        "from altcore_reporters.wandb_tracker import WandbTracker;"
        "tracker = WandbTracker(); tracker.name = 'wandb';"
        "print(tracker.upload([read_run(Path(sys.argv[1]))])[0])"
    )
    command = [sys.executable, "-c", code, str(run)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def client_of(server: WandbServer, folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Let the client find a server, and keep what it keeps in a folder.

    Its session in this process, which remembers the server, ends with the context.
    """
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MODE", "BASE_URL", "API_KEY", "PROJECT", "ENTITY"):
            patch.delenv(f"WANDB_{name}", raising=False)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
            patch.setenv(f"WANDB_{name}", str(folder))
        patch.setenv("NETRC", str(folder / "netrc"))
        try:
            yield patch
        finally:
            if wandb := sys.modules.get("wandb"):
                wandb.teardown()


def _viewer() -> dict[str, Any]:
    teams = {"edges": [{"node": {"name": ENTITY}}]}
    about = {"id": "U", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": None}
    return {
        **about,
        "admin": False,
        "flags": "{}",
        "deletedAt": None,
        "apiKeys": None,
        "teams": teams,
    }


def _global_id(run: StoredRun) -> str:
    return f"{run.entity}-{run.project}-{run.id}"


def _node(run: StoredRun) -> dict[str, Any]:
    """A run by the fields that queries ask for."""
    return {
        "id": _global_id(run),
        "name": run.id,
        "displayName": run.display_name,
        "description": None,
        "notes": None,
        "tags": run.tags,
        "group": run.group,
        "jobType": run.job_type,
        "state": run.state,
        "config": json.dumps(run.config),
        "summaryMetrics": json.dumps(run.summary),
        "systemMetrics": "{}",
        "historyKeys": _history_keys(run),
        "historyLineCount": len(run.streams.get(HISTORY, [])),
        "sweepName": None,
        "commit": None,
        "readOnly": False,
        "createdAt": CREATED,
        "heartbeatAt": CREATED,
        "user": {"name": ENTITY, "username": ENTITY},
    }


def _history_keys(run: StoredRun) -> dict[str, Any]:
    rows = run.history
    counts: dict[str, dict[str, Any]] = {}
    for row in rows:
        for key, value in row.items():
            kind = "number" if isinstance(value, int | float) else "string"
            found = counts.setdefault(key, {"typeCounts": [{"type": kind, "count": 0}]})
            found["typeCounts"][0]["count"] += 1
    last = rows[-1]["_step"] if rows else -1
    return {"sets": [], "keys": counts, "lastStep": last}


def _fits(run: StoredRun, wanted: Mapping[str, Any]) -> bool:
    """Whether a run fits a filter of the kinds that altcore asks for."""
    known = {"name": run.id, "display_name": run.display_name, "displayName": run.display_name}
    known |= {"state": run.state, "group": run.group}
    for key, value in wanted.items():
        if key == "$and":
            is_fit = all(_fits(run, part) for part in value)
        elif key == "$or":
            is_fit = any(_fits(run, part) for part in value)
        elif isinstance(value, Mapping):
            is_fit = known.get(key) in value["$in"]
        else:
            is_fit = known.get(key) == value
        if not is_fit:
            return False
    return True
