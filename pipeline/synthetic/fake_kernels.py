"""The fake Kaggle's kernels: scripts that it really runs, each session in a process of its own.

A session finds the competition's files in `../input/competitions/SLUG` (links; the folder is not writable), outputs of
other kernels in `../input/NAME`, and leaves its own outputs in its working folder. It gets no credentials.
"""
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any
from urllib.parse import quote

Answer = dict[str, Any]
OUTPUTS_PER_PAGE = 7  # fewer than a run has, so that the client must follow pages
QUEUED_LOOKS = 1  # how many times a new session is shown as queued
TOTAL_HOURS, USED_HOURS = 30, 4
# What a session gets of this process's environment: no credentials, and no way to this server.
PASSED_ON = ("PATH", "LANG", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "GLIBC_TUNABLES")


class Session:
    """One run of a kernel's script. folder: of the session, with working/ and input/."""

    def __init__(self, request: Answer, folder: pathlib.Path, variables: dict[str, str]):
        self.request, self.working, self.looks, self.cancelled = request, folder / "working", 0, False
        self.events: list[Answer] = []  # of the log
        script = folder / "script.py"
        script.write_text(request["text"])
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | variables
        self.process = subprocess.Popen(
            [sys.executable, script], cwd=self.working, text=True,
            env=environment | {"HOME": str(folder), "TMPDIR": str(folder)},  # where its checkout goes, and ends
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        streams = {"stdout": self.process.stdout, "stderr": self.process.stderr}
        self.readers = [threading.Thread(target=self.read, args=item, daemon=True) for item in streams.items()]
        for reader in self.readers:
            reader.start()

    def read(self, name: str, stream: IO[str]) -> None:
        for line in stream:
            self.events.append({"stream_name": name, "time": time.monotonic(), "data": line})

    def has_ended(self) -> bool:
        return self.process.poll() is not None and not any(reader.is_alive() for reader in self.readers)

    def status(self) -> Answer:
        self.looks += 1
        if self.cancelled:
            return {"status": "CANCEL_ACKNOWLEDGED"}
        if self.looks <= QUEUED_LOOKS:
            return {"status": "QUEUED"}
        if not self.has_ended():
            return {"status": "RUNNING"}
        code = self.process.returncode
        return {"status": "COMPLETE"} if code == 0 else {"status": "ERROR", "failureMessage": f"exit code {code}"}

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def outputs(self) -> list[str]:
        paths = sorted(path for path in self.working.rglob("*") if path.is_file())
        return [str(path.relative_to(self.working)) for path in paths]

    def stream(self) -> Iterator[bytes]:
        """Yield the log as server-sent events, from its beginning to the session's end."""
        sent = 0
        while True:
            ended = self.has_ended() or self.cancelled
            for event in self.events[sent:]:
                yield b"data: " + json.dumps(event).encode() + b"\n\n"
                sent += 1
            if ended and sent == len(self.events):
                yield b"data: END_OF_LOG\n\n"
                return
            time.sleep(0.05)


class FakeKernels:
    """All kernels of the fake Kaggle. folder: for their sessions. files: lists what these read of the competition."""

    def __init__(self, folder: pathlib.Path, slug: str, files: Callable[[], list[pathlib.Path]], url: str):
        self.folder, self.competition_slug, self.files, self.url = folder, slug, files, url
        self.sessions: dict[str, list[Session]] = {}  # by the kernel's name: one of each version
        self.variables: dict[str, str] = {}  # more of them, for the sessions

    def stop(self) -> None:
        for session in (one for versions in self.sessions.values() for one in versions):
            session.stop()

    def last(self, slug: str) -> Session | None:
        versions = self.sessions.get(slug)
        return versions[-1] if versions else None

    # --- the calls, named as in Kaggle's API; None: there is no such kernel ---

    def SaveKernel(self, request: Answer) -> Answer:
        slug = request["slug"].rpartition("/")[2]
        if re.sub("[^a-z0-9]+", "-", request["newTitle"].lower()) != slug:
            return {"error": "The kernel title does not resolve to the slug"}
        if unknown := [name for name in request["competitionDataSources"] if name != self.competition_slug]:
            return {"invalidCompetitionSources": unknown}
        sources = [name.rpartition("/")[2] for name in request.get("kernelDataSources", [])]
        if unknown := [name for name in sources if name not in self.sessions]:
            return {"invalidKernelSources": unknown}
        versions = self.sessions.setdefault(slug, [])
        folder = self.folder / slug / str(len(versions) + 1)
        mounted = folder / "input" / "competitions" / self.competition_slug
        for path in (folder / "working", mounted):
            path.mkdir(parents=True)
        for path in self.files():
            (mounted / path.name).symlink_to(path.absolute())
        for name in sources:
            (folder / "input" / name).symlink_to(self.sessions[name][-1].working)
        mounted.chmod(0o555)
        versions.append(Session(request, folder, self.variables))
        return {"ref": f"/code/{request['slug']}", "url": f"/code/{request['slug']}", "versionNumber": len(versions)}

    def GetKernelSessionStatus(self, request: Answer) -> Answer | None:
        return session.status() if (session := self.last(request["kernelSlug"])) else None

    def GetKernel(self, request: Answer) -> Answer | None:
        if (session := self.last(request["kernelSlug"])) is None:
            return None
        return {"metadata": {"slug": request["kernelSlug"]}, "blob": {"source": session.request["text"]}}

    def ListKernelSessionOutput(self, request: Answer) -> Answer | None:
        if (session := self.last(request["kernelSlug"])) is None:
            return None
        first, names = int(request.get("pageToken") or 0), session.outputs()
        links = [
            {"fileName": name, "url": f"{self.url}/output/{request['kernelSlug']}/{quote(name)}?signature=secret"}
            for name in names[first : first + OUTPUTS_PER_PAGE]
        ]
        following = first + OUTPUTS_PER_PAGE
        return {"files": links} | ({"nextPageToken": str(following)} if following < len(names) else {})

    def DeleteKernel(self, request: Answer) -> Answer | None:
        if (session := self.last(request["kernelSlug"])) is None:
            return None
        session.stop()
        del self.sessions[request["kernelSlug"]]
        return {}

    def GetAcceleratorQuotaStatistics(self, request: Answer) -> Answer:
        used, total = f"{USED_HOURS * 3600}s", f"{TOTAL_HOURS * 3600}s"
        quota = {"timeUsed": used, "totalTimeAllowed": total}
        return {"gpuQuota": quota, "quotaRefreshTime": "2030-01-05T00:00:00.000Z"}

    def path_of_output(self, name: str) -> pathlib.Path | None:
        """Return the file of `KERNEL/PATH`; None if there is none."""
        slug, _, output = name.partition("/")
        session = self.last(slug)
        return session.working / output if session and output in session.outputs() else None
