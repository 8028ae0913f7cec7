"""A model that several processes share: the store of one process within rounding, and no error
leaves one behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from lenscache.errors import ModelError, SteeringError, UnsupportedModelError
from lenscache.extract import ExtractSettings, extract
from lenscache.inference.runner import Row, Runner
from lenscache.live.steering import steer
from lenscache.model.loading import load_model
from lenscache.model.tensor_parallel import Order, Team
from lenscache.store.store import Store, open_store
from tests.lenscache.conftest import PACK, run_small, tree
from tests.lenscache.test_runner import assert_close
from tests.models import tiny_model, tiny_tokenizer

COMMAND = "import sys; from lens_cli.cache.app import main; sys.argv[0] = 'lenscache'; main()"
IMPATIENT = (
    "import datetime, lenscache.model.tensor_parallel as t; t.PATIENCE = "
    f"datetime.timedelta(seconds=5); {COMMAND}"
)
LONG = ("--max-new-tokens", "200", "--block-rows", "2")
"""Options of a run that is still under way when it is disturbed."""


def save(architecture: str, folder: Path) -> Path:
    tiny_model(architecture).model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def pack_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("packs") / "small.json"
    file.write_text(json.dumps(PACK.to_dict()))
    return file


def options(pack_file: Path, folder: Path, *more: str) -> list[str]:
    """As `run_small` has them."""
    return [
        "--pack",
        str(pack_file),
        "--model",
        str(folder),
        "--dtype",
        "float32",
        "--level",
        "1",
        "--limit",
        "2",
        "--max-new-tokens",
        "5",
        "--block-rows",
        "8",
        "--model-layers",
        "0,2",
        "--tensor-parallel",
        *more,
    ]


def start(
    number: int, of: int, port: int, *args: str, code: str = COMMAND
) -> subprocess.Popen[str]:
    """One process as torchrun would start it; torchrun itself ends all of them as soon as one
    fails."""
    place = {
        "RANK": number,
        "LOCAL_RANK": number,
        "WORLD_SIZE": of,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
    }
    environment = (
        os.environ | {key: str(value) for key, value in place.items()} | {"OMP_NUM_THREADS": "1"}
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "extract", *args],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def start_all(n: int, *args: str, code: str = COMMAND) -> list[subprocess.Popen[str]]:
    port = free_port()
    return [start(number, n, port, *args, code=code) for number in range(n)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def ends(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def errors(err: str) -> list[str]:
    assert "Traceback" not in err, err
    return [line for line in err.splitlines() if line.startswith("error:")]


def assert_same_but_for_rounding(found: Store, expected: Store) -> None:
    assert found.header == expected.header
    for one, other in zip(found.rounds(), expected.rounds(), strict=True):
        assert (one.is_complete, one.name) == (True, other.name)
        here, there = other.samples(), one.samples()
        np.testing.assert_array_equal(there.completion, here.completion)
        np.testing.assert_array_equal(there.key, here.key)
        for phase in expected.header.phases:
            for model_layer in expected.header.model_layers:
                assert_close(one.read(phase, model_layer), other.read(phase, model_layer))


def test_two_processes_write_the_store_of_one(
    folder: Path, pack_file: Path, tmp_path: Path
) -> None:
    """Started by torchrun; the first process alone speaks, and a single process can go on with what
    it wrote."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--no-python",
    ]
    command = [sys.executable, "-c", COMMAND, "extract", str(tmp_path / "two.zarr")]
    asked = options(pack_file, folder, "--store-dtype", "float32", "--json")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*torchrun, *command, *asked], capture_output=True, text=True, timeout=280, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["rows_run"] == 20
    assert ran.stderr.count("loading ") == 1
    assert "float32 on 2 processes, the first of them on" in ran.stderr
    settings = ExtractSettings(
        max_new_tokens=5, block_rows=8, model_layers=(0, 2), store_dtype="float32"
    )
    whole = load_model(str(folder), dtype="float32", device="cpu")
    run_small(tmp_path / "one.zarr", whole, settings)
    assert_same_but_for_rounding(
        open_store(tmp_path / "two.zarr"), open_store(tmp_path / "one.zarr")
    )
    before = tree(tmp_path / "two.zarr")
    assert run_small(tmp_path / "two.zarr", whole, settings).rows_run == 0
    assert tree(tmp_path / "two.zarr") == before


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt_neox", "gemma", "gemma3", "qwen", "qwen3"])
@pytest.mark.parametrize("mode", ["prompt", "combined"])
def test_every_architecture_with_a_plan_gives_the_same(
    architecture: str, mode: str, pack_file: Path, tmp_path: Path
) -> None:
    folder = save(architecture, tmp_path / f"tiny-{architecture}")
    asked = options(
        pack_file, folder, "--store-dtype", "float32", "--mode", mode, "--pooling", "last"
    )
    leader, follower = start_all(2, str(tmp_path / "two.zarr"), *asked)
    code, _, err = ends(leader)
    assert code == 0, err
    assert ends(follower) == (0, "", "")
    settings = ExtractSettings(
        max_new_tokens=5,
        block_rows=8,
        model_layers=(0, 2),
        store_dtype="float32",
        mode=mode,  # type: ignore[arg-type]
        pooling="last",
    )
    run_small(
        tmp_path / "one.zarr", load_model(str(folder), dtype="float32", device="cpu"), settings
    )
    assert_same_but_for_rounding(
        open_store(tmp_path / "two.zarr"), open_store(tmp_path / "one.zarr")
    )


@pytest.mark.slow
def test_error_between_batches_ends_the_others_in_peace(
    folder: Path, pack_file: Path, store_copy: Path
) -> None:
    """Such as a store that was written with other settings."""
    leader, follower = start_all(2, str(store_copy), *options(pack_file, folder, "--seed", "7"))
    code, out, err = ends(leader)
    assert (code, out, len(errors(err))) == (1, "", 1)
    assert "seed" in errors(err)[0]
    assert ends(follower) == (0, "", "")


@pytest.mark.slow
def test_process_that_cannot_load_the_model_is_named_by_the_first(
    folder: Path, pack_file: Path, tmp_path: Path
) -> None:
    port, store = free_port(), str(tmp_path / "s.zarr")
    leader = start(0, 2, port, store, *options(pack_file, folder))
    follower = start(1, 2, port, store, *options(pack_file, tmp_path / "nothing"))
    code, _, err = ends(leader)
    assert code == 1
    assert [line[:58] for line in errors(err)] == [
        "error: process 2 of 2 cannot load the model: cannot load t"
    ]
    assert ends(follower) == (1, "", "")
    assert not Path(store).exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_process_that_is_killed_ends_the_other_with_one_line(
    victim: int, folder: Path, pack_file: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    processes = start_all(2, str(store), *options(pack_file, folder, *LONG))
    wait_for_a_block(store)
    processes[victim].send_signal(signal.SIGKILL)
    other = processes[1 - victim]
    code, _, err = ends(other, timeout=30)
    assert code == 1
    assert len(errors(err)) == 1
    assert f"process {2 - victim} of 2 lost another one" in err
    processes[victim].communicate()
    assert not open_store(store).rounds()[0].is_complete
    assert open_store(store).rounds()[0].complete_blocks().any()


@pytest.mark.slow
def test_process_that_hangs_is_given_up(folder: Path, pack_file: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    leader, follower = start_all(2, str(store), *options(pack_file, folder, *LONG), code=IMPATIENT)
    wait_for_a_block(store)
    follower.send_signal(signal.SIGSTOP)
    code, _, err = ends(leader, timeout=60)
    follower.send_signal(signal.SIGKILL)
    follower.communicate()
    assert code == 1
    assert len(errors(err)) == 1
    assert "process 1 of 2 lost another one in the middle of a batch" in err


def wait_for_a_block(store: Path) -> None:
    deadline = time.monotonic() + 100
    while not list(store.glob("layer_1/round_0/complete/c/*")):
        assert time.monotonic() < deadline, "no block was written"
        time.sleep(0.05)


@pytest.mark.slow
def test_heads_that_processes_cannot_share_evenly_are_one_line(
    folder: Path, pack_file: Path, tmp_path: Path
) -> None:
    processes = start_all(3, str(tmp_path / "s.zarr"), *options(pack_file, folder))
    ended = [ends(process) for process in processes]
    assert [code for code, _, _ in ended] == [1, 1, 1]
    assert [len(errors(err)) for _, _, err in ended] == [1, 0, 0]
    assert "num_attention_heads is 4, which 3 processes cannot share evenly" in ended[0][2]


# --- one process alone: what needs no second one to be seen -------------------------------------


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Team]:
    """A team of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield Team(torch.device("cpu"))
    if dist.is_initialized():
        dist.destroy_process_group()


def test_without_torchrun_it_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(
        ModelError,
        match=r"several processes and there is one: start them with `torchrun --nproc-per",
    ):
        Team.join()


def test_architecture_without_a_plan_is_refused(tmp_path: Path, alone: Team) -> None:
    folder = save("gpt2", tmp_path / "tiny-gpt2")
    with pytest.raises(
        UnsupportedModelError,
        match="no tensor-parallel plan for gpt2 models: use --device-map auto",
    ):
        load_model(str(folder), dtype="float32", team=alone)


def test_device_map_and_team_exclude_each_other(folder: Path, alone: Team) -> None:
    with pytest.raises(ModelError, match="a device map and a team of processes are given"):
        load_model(str(folder), device_map="auto", team=alone)


def test_shared_model_is_not_steered_nor_called_outside_of_a_batch(
    folder: Path, alone: Team
) -> None:
    """The other processes would do something else, or wait for ever."""
    loaded = load_model(str(folder), dtype="float32", team=alone)
    with (
        pytest.raises(SteeringError, match="only this one would steer"),
        steer(loaded, np.ones(32), 1, 2.0),
    ):
        pass
    with pytest.raises(ModelError, match="runs only in `lenscache extract`"):
        loaded.model(torch.tensor([[3, 4, 5]]))
    assert len(Runner(loaded, (0,), max_new_tokens=2).run([Row([3, 4, 5])])) == 1
    with pytest.raises(ModelError, match="runs only in"):
        loaded.model(torch.tensor([[3, 4, 5]]))


def test_full_memory_is_an_error_instead_of_a_smaller_batch(
    folder: Path, alone: Team, tmp_path: Path
) -> None:
    """The others are in the middle of the batch and cannot turn back."""
    loaded = load_model(str(folder), dtype="float32", team=alone)

    def fill(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    loaded.blocks[1].register_forward_hook(fill)
    with pytest.raises(
        ModelError, match="process 1 of 1 has no memory left on cpu: lower --batch-size"
    ):
        extract(
            tmp_path / "s.zarr", PACK, loaded, ExtractSettings(mode="prompt"), levels=[1], limit=2
        )


def test_error_of_the_program_itself_is_not_taken_for_a_lost_process(alone: Team) -> None:
    with (
        pytest.raises(RuntimeError, match="shapes do not match"),
        alone.step(Order([], (0,), "prompt", 0)),
    ):
        raise RuntimeError("shapes do not match")


def test_errors_in_loading_are_raised_as_they_are(alone: Team) -> None:
    alone.agree(None)
    with pytest.raises(ModelError, match="no such thing"):
        alone.agree(ModelError("no such thing"))


def test_leader_alone_leads_and_lets_go(alone: Team) -> None:
    assert alone.is_leader
    with alone.leading():
        assert alone.share(torch.tensor([1, 2])).tolist() == [1, 2]
    assert not dist.is_initialized()
