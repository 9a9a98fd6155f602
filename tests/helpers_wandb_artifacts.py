"""What a W&B server on loopback says of artifacts, which it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define, field


@define(eq=False)
class ArtifactAnswers:
    """A part of `helpers_wandb.WandbServer`."""

    artifacts: list[dict[str, Any]] = field(factory=list)
    """As they were created; with ``files`` by name, and ``is_committed`` at the end."""
    url: str = field(init=False, default="")

    def on_artifact_type(self, _: Mapping[str, Any]) -> Any:
        return {"project": {"artifact": None}}

    def on_create_artifact(self, given: Mapping[str, Any]) -> Any:
        self.artifacts.append({**given["input"], "files": {}, "is_committed": False})
        sequence = {"latestArtifact": None}
        made = {"id": str(len(self.artifacts)), "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": made}}

    def on_create_artifact_manifest(self, given: Mapping[str, Any]) -> Any:
        file = {"id": "F", **self._upload(given["artifactID"], given["name"])}
        return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}

    def on_create_artifact_files(self, given: Mapping[str, Any]) -> Any:
        nodes = [
            {
                "id": file["name"],
                "name": file["name"],
                "displayName": file["name"],
                "storagePath": file["name"],
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
                **self._upload(file["artifactID"], file["name"]),
            }
            for file in given["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def on_commit_artifact(self, given: Mapping[str, Any]) -> Any:
        self.artifacts[int(given["artifactID"]) - 1]["is_committed"] = True
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "0"}}}

    def on_artifact_by_id(self, given: Mapping[str, Any]) -> Any:
        made = self.artifacts[int(given["id"]) - 1]
        entity = {"name": made["entityName"]}
        project = {
            "id": "UA==",
            "internalId": "UA==",
            "name": made["projectName"],
            "entity": entity,
        }
        name = made["artifactCollectionName"]
        return {
            "artifact": {
                "__typename": "Artifact",
                "id": given["id"],
                "artifactSequence": {
                    "__typename": "ArtifactSequence",
                    "name": name,
                    "project": project,
                },
                "versionIndex": 0,
                "artifactType": {"name": made["artifactTypeName"]},
                "description": None,
                "metadata": made["metadata"],
                "ttlDurationSeconds": -1,
                "ttlIsInherited": True,
                "tags": [],
                "historyStep": None,
                "state": "COMMITTED",
                "size": sum(map(len, made["files"].values())),
                "digest": made["digest"],
                "digestAlgorithm": made["digestAlgorithm"],
                "commitHash": None,
                "fileCount": len(made["files"]),
                "createdAt": "2026-01-01T00:00:00",
                "updatedAt": None,
                "aliases": [],
            }
        }

    def keep_artifact(self, number: str, name: str, body: bytes) -> None:
        """Keep a file of an artifact."""
        self.artifacts[int(number) - 1]["files"][name] = body

    def _upload(self, number: str, name: str) -> dict[str, Any]:
        return {"uploadUrl": f"{self.url}/artifacts/{number}/{name}", "uploadHeaders": []}
