"""Commands that are killed, or whose writes fail, and what they leave: for `faults.py`.

    Workshop: inputs made once --fork--> a process that has imported everything runs one command
        --strace or a timer--> SIGKILL, or an error, at one of its writing system calls
        --look-------------> half-written? sound blocks gone? --again--> as an undisturbed run?

A call is hit where strace can attach: each thread that writes is counted by itself, and zarr gets
one thread. Elsewhere the calls are those that Python makes to open, rename or remove files, through
its audit hooks.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import errno
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import zarr
from lens_cli.cache import app as lenscache_cli
from lens_cli.train import app as lenstrain_cli
from typer.testing import CliRunner
from zarr.core.sync import sync

from lenscache.store.store import open_store
from lenscache.store.verify.verify import verify_store
from tests.lenscache.conftest import tree
from tests.lenscache.faults import damage
from tests.models import tiny_model, tiny_tokenizer
from tests.packs import small_pack

CALLS = (
    "openat,write,pwrite64,writev,rename,renameat,renameat2,link,linkat,mkdir,mkdirat,rmdir,unlink,"
    "unlinkat,ftruncate,truncate,chmod,fchmod,fchmodat,symlink,symlinkat,sendfile,copy_file_range"
)
_EVENTS = {"os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.chmod"}
"""Audit events of the same kind; `open` for writing is another."""
KINDS = ("kill", "fail")
_PATIENCE_S = 120


@dataclass(frozen=True)
class Command:
    """One command line, and what it writes."""

    name: str
    arguments: tuple[str, ...]
    target: str
    """The store, folder or file that it writes, below the work folder."""
    begins_with: str | None = None
    """What lies there before, among the inputs."""
    in_parts: bool = False
    """Whether it writes a folder of results, one after the other."""

    @property
    def is_store(self) -> bool:
        """Whether it writes into a store."""
        return self.target.endswith(".zarr")

    def whole_parts(self, target: Path) -> list[str]:
        """Starts of the names of files, each of which is there with all others of its start."""
        if not self.in_parts:
            return [""] if target.exists() else []
        return [f"{part.name}/" for part in target.glob("[!.]*")]


class Fault(NamedTuple):
    """What befalls one run of a command."""

    command: int
    kind: str
    """`kill`, `fail`, or `moment` for a kill at a random moment."""
    at: float
    """Which call, from 1 on; or the share of an undisturbed run."""
    call: str = ""
    """Of which system call; strace counts each by itself. "" for all that Python makes."""
    thread: int = 0
    """Which of the threads of `_threads` makes the call."""


@dataclass
class Outcome:
    """What came of the faults of one command."""

    runs: int = 0
    hit: int = 0
    """Runs that were stopped or whose call failed; the others had ended before."""
    half_written: int = 0
    """A file, folder or block that counted as written and was not whole."""
    lost: int = 0
    """Runs after which the same command did not come to what an undisturbed one leaves."""
    thrown_away: int = 0
    """Sound blocks that were complete before and no longer are."""
    notes: list[str] = field(default_factory=list)


class Workshop:
    """The inputs of all commands, what undisturbed runs leave, and how long they take."""

    def __init__(self, folder: Path) -> None:
        self.base = folder / "inputs"
        self.base.mkdir()
        self.folder = folder
        in_child(self._make_inputs)
        self.commands = list(self._commands())
        self._import_everything()
        self.expected: list[dict[str, bytes]] = []
        self.seconds: list[float] = []
        for command in self.commands:
            first, second = (self._undisturbed(command, number) for number in range(2))
            # Clocks and durations are left out of the comparison.
            stable = {name: data for name, data in first.items() if second.get(name) == data}
            self.expected.append(stable)

    def _import_everything(self) -> None:
        """Import what the commands import as they go, so that each run begins at once."""

        def imported() -> list[str]:
            for number, command in enumerate(self.commands):
                run(command, self.base, self.work(command, f"imports {number}"))
            return sorted(sys.modules)

        for name in in_child(imported):
            with contextlib.suppress(Exception):  # some are made as a program runs
                importlib.import_module(name)

    def _undisturbed(self, command: Command, number: int) -> dict[str, bytes]:
        work = self.work(command, f"undisturbed {command.name} {number}")
        start = time.perf_counter()
        code, output = in_child(lambda: run(command, self.base, work))
        if number:
            self.seconds.append(time.perf_counter() - start)
        if code:
            raise RuntimeError(f"{command.name} ended with {code}: {output}")
        found = contents(work / command.target)
        shutil.rmtree(work)
        return found

    def work(self, command: Command, name: str) -> Path:
        """A folder as the command finds it."""
        work = self.folder / name.replace("/", " ")
        work.mkdir()
        if command.begins_with:
            shutil.copytree(self.base / command.begins_with, work / command.target)
        return work

    def _make_inputs(self) -> None:
        base, pack = self.base, small_pack(n_examples=12)
        tiny_model().model.save_pretrained(base / "model")
        tiny_tokenizer().save_pretrained(base / "model")
        (base / "pack.json").write_text(json.dumps(pack.to_dict()))
        classes = {"bird": "alive", "fish": "alive", "boat": "made", "oven": "made"}
        with (base / "topics.csv").open("w", newline="", encoding="utf-8") as file:
            rows = [
                (text, topic) for name, topic in classes.items() for text in pack[name].examples
            ]
            csv.writer(file).writerows([("text", "topic"), *rows])
        for arguments in (
            ("lenscache", "extract", "BASE/store.zarr", *_EXTRACT),
            ("lenstrain", "fit", "BASE/store.zarr", *_FIT, "--out", "BASE/lenses"),
        ):
            code, output = run(Command("inputs", arguments, ""), base, base)
            if code:
                raise RuntimeError(output)
        (base / "hungry.json").write_text(json.dumps({"concepts": ["bird"], "store": None}))
        shutil.copytree(base / "store.zarr", base / "damaged.zarr")
        damage(base / "damaged.zarr" / _DAMAGED, "flipped", random.Random(0))

    @staticmethod
    def _commands() -> Iterator[Command]:
        store, out = "WORK/s.zarr", ("--out", "WORK/out")
        yield Command("extract", ("lenscache", "extract", store, *_EXTRACT), "s.zarr")
        more = ("--top-up", "BASE/hungry.json", "--samples", "3")
        top_up = ("lenscache", "extract", store, *_EXTRACT[:-4], *more)
        yield Command("extract --top-up", top_up, "s.zarr", "store.zarr")
        label = (
            "lenscache",
            "label",
            store,
            "BASE/topics.csv",
            "--name",
            "one",
            "--label",
            "topic",
        )
        yield Command("label", label, "s.zarr", "store.zarr")
        yield Command("repair", ("lenscache", "repair", store), "s.zarr", "damaged.zarr")
        export = ("lenscache", "export", "BASE/store.zarr", "--to", "safetensors", *out)
        yield Command("export", export, "out")
        imported = ("--out", "WORK/out.json", "--label", "topic")
        imported = ("lenscache", "pack", "import", "BASE/topics.csv", *imported)
        yield Command("pack import", imported, "out.json")
        fit = ("lenstrain", "fit", "BASE/store.zarr", *_FIT)
        for family in ("linear", "discriminant", "mlp", "mean-difference"):
            yield Command(f"fit, {family}", (*fit, *out, "--family", family), "out")
        yield Command("fit, grid", (*fit, *out, "--f1", "0.9", "--f1", "0.8"), "out", in_parts=True)
        yield Command("fit --follow", (*fit, *out, "--follow"), "out")
        report = ("lenstrain", "report", "BASE/lenses", "--store", "BASE/store.zarr")
        yield Command("report", (*report, "--out", "WORK/out.html"), "out.html")
        read = ("lenstrain", "read", "BASE/lenses", "--model", "BASE/model", "--dtype", "float32")
        text = ("--ungraded", "--text", "wings over the roof", "--html", "WORK/out.html")
        yield Command("read --html", (*read, *text), "out.html")


_EXTRACT = (
    *("--pack", "BASE/pack.json", "--model", "BASE/model", "--dtype", "float32"),
    *("--max-new-tokens", "3", "--block-rows", "16", "--background", "0"),
    *("--model-layers", "1", "--level", "1", "--limit", "3"),
)
_FIT = ("--jobs", "1", "--max-iterations", "1", "--no-beyond")
_DAMAGED = "layer_1/round_0/samples/completion/c/1"


def run(command: Command, base: Path, work: Path) -> tuple[int, str]:
    """Run a command in this process; its exit code and what it printed."""
    program, *arguments = (
        part.replace("BASE", str(base)).replace("WORK", str(work)) for part in command.arguments
    )
    app = lenscache_cli.app if program == "lenscache" else lenstrain_cli.app
    ran = CliRunner().invoke(app, arguments)
    return ran.exit_code, ran.output[-600:]


def contents(target: Path) -> dict[str, bytes]:
    """The files of a folder, or one file; nothing if it is not there."""
    if target.is_file():
        return {"": target.read_bytes()}
    return tree(target)


def in_child(do: Callable[[], Any]) -> Any:
    """Do something in a forked process, so that its threads stay there; what it returns."""
    read, write = os.pipe()
    if not (pid := os.fork()):
        os.close(read)
        try:
            answer = {"answer": do()}
        except BaseException as error:  # noqa: BLE001 - told by the parent
            answer = {"error": f"{type(error).__name__}: {error}"}
        with os.fdopen(write, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    found = json.loads(text or '{"error": "the process died"}')
    if "error" in found:
        raise RuntimeError(found["error"])
    return found["answer"]


def can_trace() -> bool:
    """Whether strace is there and may attach to a process."""
    if not (strace := shutil.which("strace")):
        return False
    with subprocess.Popen(["sleep", "9"]) as sleeper:
        probe = [strace, "-p", str(sleeper.pid), "-o", os.devnull]
        with subprocess.Popen(probe, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr is not None
            attached = "attached" in tracer.stderr.readline()
            sleeper.kill()
    return attached


def every_call(shop: Workshop, *, traced: bool) -> list[Fault]:
    """Every writing call of every command, killed and failed once, as undisturbed runs make
    them."""
    faults = []
    for number, command in enumerate(shop.commands):
        work = shop.work(command, f"counted {number}")
        its = [_Run(shop, command, work, log=work.with_suffix(f".{i}")) for i in range(2)]
        for thread, one in enumerate(its[: 2 if traced else 1]):
            for call, at in one.calls(thread) if traced else one.audited_calls():
                faults += [Fault(number, kind, at, call, thread) for kind in KINDS]
        shutil.rmtree(work)
    return faults


def random_moments(n: int, n_commands: int, seed: int = 0) -> list[Fault]:
    """Kills at moments spread over undisturbed runs, by turns of the commands."""
    rng = random.Random(seed)
    return [Fault(i % n_commands, "moment", rng.uniform(0.02, 1.0)) for i in range(n)]


class _Run:
    """One run of a command in a forked process that waits until it is told to begin."""

    def __init__(self, shop: Workshop, command: Command, work: Path, *, log: Path) -> None:
        self.shop, self.command, self.work, self.log = shop, command, work, log

    def start(self, audit: Callable[[], None] | None = None) -> tuple[int, list[int], int]:
        """Its process, its threads that write, and where to write to let it begin."""
        told, tell = os.pipe()
        wait, go = os.pipe()
        if not (pid := os.fork()):
            os.close(go)
            code = 1
            try:
                os.write(tell, json.dumps(_threads()).encode())
                if os.read(wait, 1):
                    if audit is not None:
                        _audit(audit)
                    code, _ = run(self.command, self.shop.base, self.work)
            finally:
                os._exit(code)
        os.close(wait)
        os.close(tell)
        threads = json.loads(os.read(told, 1000))
        os.close(told)
        return pid, threads, go

    def trace(self, thread: int, *injection: str) -> bool:
        """Run it with strace attached to one of its threads; whether it was killed or failed."""
        pid, threads, go = self.start()
        command = ["strace", "-p", str(threads[thread]), "-e", f"trace={CALLS}", *injection]
        with subprocess.Popen(
            [*command, "-o", str(self.log)], stderr=subprocess.PIPE, text=True
        ) as tracer:
            assert tracer.stderr is not None
            tracer.stderr.readline()  # "Process ... attached"
            os.write(go, b"x")
            os.close(go)
            return finish(pid) != 0

    def calls(self, thread: int) -> list[tuple[str, int]]:
        """The writing calls of one thread, in order: which system call, and the how many-th of
        its kind."""
        shutil.rmtree(self.work)
        self.work = self.shop.work(self.command, self.work.name)
        self.trace(thread)
        names, lines = CALLS.split(","), self.log.read_text(errors="replace").splitlines()
        self.log.unlink()
        times: Counter[str] = Counter()
        found = []
        for line in lines:
            if (name := line.partition("(")[0]) in names:
                times[name] += 1
                if name != "openat" or "O_CREAT" in line:  # others only read
                    found.append((name, times[name]))
        return found

    def audited_calls(self) -> list[tuple[str, int]]:
        """Calls that Python makes to change files, as `calls`."""
        read, write = os.pipe()
        pid, _, go = self.start(lambda: os.write(write, b"x") and None)
        os.close(write)
        os.write(go, b"x")
        n = 0
        while data := os.read(read, 10_000):
            n += len(data)
        finish(pid)
        return [("", at) for at in range(1, n + 1)]


def _threads() -> list[int]:
    """The threads that will write: this one, and the one thread that zarr gets."""
    zarr.config.set({"threading.max_workers": 1})
    return [threading.get_native_id(), sync(asyncio.to_thread(threading.get_native_id))]


def _audit(call: Callable[[], None]) -> None:
    """Call before every change of a file that Python makes."""
    writing = os.O_WRONLY | os.O_RDWR

    def hook(event: str, arguments: Sequence[Any]) -> None:
        if event in _EVENTS or (event == "open" and arguments[2] & writing):
            call()

    sys.addaudithook(hook)


def finish(pid: int) -> int:
    """Wait for a process, and end it if it hangs; its status."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            end += _PATIENCE_S
        time.sleep(0.002)


def befall(shop: Workshop, fault: Fault, work: Path, *, traced: bool) -> bool:
    """Let a fault befall a run; whether it did."""
    command = shop.commands[fault.command]
    one = _Run(shop, command, work, log=work.with_suffix(".strace"))
    if fault.kind == "moment":
        pid, _, go = one.start()
        os.write(go, b"x")
        os.close(go)
        time.sleep(fault.at * shop.seconds[fault.command])
        os.kill(pid, signal.SIGKILL)
        return os.WIFSIGNALED(finish(pid))
    call = int(fault.at)
    if traced:
        how = "signal=KILL" if fault.kind == "kill" else "error=EIO"
        ended = one.trace(fault.thread, "-e", f"inject={fault.call}:{how}:when={call}")
        is_hit = ended or "(INJECTED)" in one.log.read_text(errors="replace")
        one.log.unlink()
        return is_hit
    seen = iter(range(1, 10**9))

    def strike() -> None:
        if next(seen) == call:
            if fault.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    pid, _, go = one.start(strike)
    os.write(go, b"x")
    os.close(go)
    finish(pid)
    return True


def judge(shop: Workshop, fault: Fault, work: Path) -> dict[str, Any]:
    """What a run left, and what the same command makes of it."""
    command, expected = shop.commands[fault.command], shop.expected[fault.command]
    target, found = work / command.target, {"half_written": 0, "lost": 0, "thrown_away": 0}
    notes: list[str] = []
    if command.is_store:
        half, thrown = in_child(lambda: look_at_store(shop, command, target))
        found |= {"half_written": len(half), "thrown_away": thrown}
        notes += half
    elif wrong := differing(contents(target), expected, command.whole_parts(target)):
        found["half_written"] = 1
        notes.append(f"{command.target} is not whole: {wrong}")
    # A run that ended after all has nothing left to do: it refuses to write over its result.
    is_done = not command.is_store and not differing(contents(target), expected)
    code, output = (0, "") if is_done else in_child(lambda: run(command, shop.base, work))
    if code or (wrong := differing(contents(target), expected)):
        found["lost"] = 1
        notes.append(f"again: exit code {code}, {output if code else wrong}")
    return {**found, "notes": notes}


def look_at_store(shop: Workshop, command: Command, store: Path) -> tuple[list[str], int]:
    """Damage that the fault left, and how many sound blocks of before are no longer complete."""
    if not (store / "zarr.json").exists():
        return [], 0 if command.begins_with is None else _complete(shop.base / "store.zarr")
    known = [] if command.begins_with != "damaged.zarr" else [_DAMAGED]
    findings = [f for f in verify_store(store, jobs=1).findings if f.path not in known]
    if command.begins_with is None:
        return [finding.line() for finding in findings], 0
    thrown = 0
    now = {target.name: target.complete_blocks() for target in open_store(store).rounds()}
    for before in open_store(shop.base / "store.zarr").rounds():
        gone = set((~now[before.name]).nonzero()[0].tolist())
        thrown += len(gone - ({1} if known else set()))
    return [finding.line() for finding in findings], thrown


def _complete(store: Path) -> int:
    """Complete blocks of a store."""
    return int(sum(target.complete_blocks().sum() for target in open_store(store).rounds()))


def differing(
    found: dict[str, bytes], expected: dict[str, bytes], parts: Sequence[str] = ("",)
) -> list[str]:
    """Files of some parts that are missing or differ from those of an undisturbed run."""
    names = [name for name in expected if name.startswith(tuple(parts))]
    return [name or "the file" for name in names if found.get(name) != expected[name]][:3]


def try_all(
    shop: Workshop, faults: Sequence[Fault], *, traced: bool, jobs: int
) -> dict[str, Outcome]:
    """Let each fault befall a run of its own; what came of them, by command."""
    workers = []
    for worker in range(jobs):
        log = shop.folder / f"worker {worker}"
        if not (pid := os.fork()):
            try:
                _work(shop, faults[worker::jobs], log, traced=traced)
            finally:
                os._exit(0)
        workers.append((pid, log))
    outcomes = {command.name: Outcome() for command in shop.commands}
    for pid, log in workers:
        os.waitpid(pid, 0)
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            outcome = outcomes[entry["command"]]
            outcome.runs += 1
            for name in ("hit", "half_written", "lost", "thrown_away"):
                setattr(outcome, name, getattr(outcome, name) + entry[name])
            outcome.notes += entry["notes"]
        log.unlink()
    if (ran := sum(outcome.runs for outcome in outcomes.values())) != len(faults):
        raise RuntimeError(f"{len(faults) - ran} of {len(faults)} runs came to nothing")
    return outcomes


def _work(shop: Workshop, faults: Sequence[Fault], log: Path, *, traced: bool) -> None:
    with log.open("w") as lines:
        for number, fault in enumerate(faults):
            command = shop.commands[fault.command]
            work = shop.work(command, f"{log.name} {number}")
            hit = befall(shop, fault, work, traced=traced)
            try:
                found = judge(shop, fault, work)
            except RuntimeError as error:
                found = {"half_written": 0, "lost": 1, "thrown_away": 0, "notes": [str(error)]}
            found["notes"] = [f"{fault.kind} at {fault.at:.3g}: {n}" for n in found["notes"]]
            lines.write(json.dumps({"command": command.name, "hit": hit, **found}) + "\n")
            lines.flush()
            shutil.rmtree(work)


def summed(outcomes: dict[str, Outcome]) -> Outcome:
    """The sum over all commands."""
    each = outcomes.values()
    return Outcome(*(sum(getattr(o, f.name) for o in each) for f in fields(Outcome)[:-1]))
