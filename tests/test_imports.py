"""Imports go one way, and stage two works without stage one's libraries (DESIGN.md, section 3)."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from lenscache.extract import ExtractSettings, extract
from tests.models import tiny_model
from tests.packs import small_pack

ROOT = Path(__file__).parents[1]
PACKAGES = ("lenscache", "lenstrain", "cli")

HEAVY = {
    *("torch", "transformers", "zarr", "numcodecs", "numpy", "scipy", "sklearn", "safetensors"),
    *("ml_dtypes", "platformdirs", "typer", "rich"),
}
INTERNAL = {"lenscache", "lenstrain", "lens_cli", "cli"}

# Default deny: what stands in a folder, or a file by itself, may import the standard library, its
# own folder, the places that its row names (errors.py of its package goes without saying), and the
# outside packages whose row names it. A file in no folder of this table fails.
RULES = {
    # errors, terms < concepts, model < inference, store < live, extract, inspection < the rest
    "lenscache/__init__.py": "lenscache",
    "lenscache/__main__.py": "cli",
    "lenscache/errors.py": "",
    "lenscache/terms.py": "",
    "lenscache/bfloat16.py": "",
    "lenscache/drawing.py": "",
    "lenscache/folders.py": "",
    "lenscache/cluster.py": "",
    "lenscache/memory.py": "",
    "lenscache/concepts": "",
    "lenscache/concepts/importers": "concepts",
    "lenscache/model": "terms.py",
    "lenscache/inference": "terms.py memory.py model",
    "lenscache/store": "terms.py bfloat16.py concepts drawing.py",
    "lenscache/store/store.py": "store/views",  # for Store.to_xarray
    "lenscache/store/verify": "terms.py concepts store",
    "lenscache/store/views": "terms.py folders.py concepts store",
    "lenscache/live": "terms.py model inference",
    "lenscache/extract": "terms.py concepts model inference store cluster.py memory.py",
    "lenscache/extract/texts.py": "concepts/importers",
    "lenscache/inspection.py": "terms.py drawing.py store store/views",
    "lenscache/plots.py": "terms.py store inspection.py drawing.py",
    "lenscache/forecast.py": "memory.py concepts model store extract",
    "lenscache/preflight": "memory.py concepts model inference live",
    # errors, metrics, parallel < settings, families < data < pack, audit < compare, live < fit,
    # report, exchange < sweeps, inspection, plots
    "lenstrain/__init__.py": "lenstrain",
    "lenstrain/__main__.py": "cli",
    "lenstrain/errors.py": "",
    "lenstrain/parallel.py": "",
    "lenstrain/metrics": "",
    "lenstrain/settings.py": "metrics",
    "lenstrain/families": "parallel.py",
    "lenstrain/estimators.py": "parallel.py families",
    "lenstrain/data": (
        "metrics settings.py families lenscache/store lenscache/concepts lenscache/terms.py "
        "lenscache/errors.py lenscache/memory.py"
    ),
    "lenstrain/audit": "settings.py data",
    "lenstrain/pack": "metrics families data lenscache/folders.py lenscache/errors.py",
    "lenstrain/pack/pack.py": "quick.py lenscache/model",  # for LensPack.predict
    "lenstrain/quick.py": (
        "metrics live pack lenscache/concepts/importers lenscache/model lenscache/drawing.py"
    ),
    "lenstrain/compare": "metrics settings.py data pack",
    "lenstrain/live": "metrics families pack lenscache/errors.py",
    "lenstrain/live/read.py": "lenscache/live lenscache/model",
    "lenstrain/live/steering.py": "lenscache/live lenscache/model",
    "lenstrain/fit": "metrics parallel.py settings.py families data pack compare",
    "lenstrain/fit/train.py": "lenscache/store lenscache/errors.py",
    "lenstrain/report": "metrics data pack compare",
    "lenstrain/exchange": "metrics settings.py families pack live",
    "lenstrain/sweeps": "settings.py data pack fit",
    "lenstrain/sweeps/ray.py": "lenscache/cluster.py",
    "lenstrain/inspection.py": "settings.py families data pack compare fit",
    "lenstrain/plots.py": "metrics data pack inspection.py lenscache/drawing.py",
    # console, options < runlog, models < meter < cache, train
    "cli/__init__.py": "",
    "cli/console.py": "lenscache/errors.py",
    "cli/options.py": "lenscache",
    "cli/group.py": "console.py",
    "cli/runlog.py": "console.py",
    "cli/models.py": "console.py lenscache lenstrain",
    "cli/meter.py": "console.py runlog.py",
    "cli/cache": "cli lenscache",
    "cli/cache/preflight_lenses.py": "lenstrain",
    "cli/train": "cli lenscache lenstrain",
}

OUTSIDE = {
    "numpy": (
        "lenscache/concepts lenscache/inference lenscache/bfloat16.py lenscache/store "
        "lenscache/store/verify lenscache/store/views "
        "lenscache/live lenscache/extract lenscache/inspection.py lenscache/plots.py "
        "lenscache/forecast.py lenscache/preflight lenstrain cli/train "
        "cli/cache/preflight_lenses.py"
    ),
    "torch": (
        "lenscache/model lenscache/inference lenscache/live lenscache/extract lenscache/memory.py "
        "lenscache/forecast.py lenscache/preflight lenstrain/families lenstrain/data "
        "lenstrain/fit lenstrain/live lenstrain/exchange lenstrain/parallel.py "
        "lenstrain/estimators.py"
    ),
    "transformers": (
        "lenscache/model/loading.py lenscache/model/outline.py lenscache/model/builtin.py "
        "lenscache/model/checkpoint.py lenscache/model/caches.py lenscache/model/wrapping.py"
    ),
    "huggingface_hub": "lenscache/model/names.py",
    "accelerate": "lenscache/model/placement.py",
    "peft": "lenscache/model/adapter.py",
    "platformdirs": "lenscache/model/builtin.py",
    "safetensors": (
        "lenscache/model/loading.py lenscache/model/loading_errors.py lenstrain/pack "
        "lenstrain/exchange"
    ),
    "zarr": "lenscache/store lenscache/store/verify lenscache/bfloat16.py",
    "ml_dtypes": "lenscache/store lenscache/bfloat16.py",
    "numcodecs": "lenscache/store/shards.py",
    "google_crc32c": "lenscache/store/shards.py",
    "pyarrow": "lenscache/store/views/export.py lenscache/concepts/importers/tables.py",
    "xarray": "lenscache/store/views/xarray_view.py lenscache/store/store.py",
    "pandas": (
        "lenscache/store/views/xarray_view.py lenscache/store/store.py lenstrain/quick.py "
        "lenstrain/pack/pack.py"
    ),
    "matplotlib": "lenscache/drawing.py lenscache/plots.py lenstrain/plots.py",
    "ray": "lenscache/cluster.py lenscache/extract/ray_driver.py lenstrain/sweeps/ray.py",
    "scipy": (
        "lenstrain/metrics lenstrain/families lenstrain/data lenstrain/audit "
        "lenstrain/pack/tensors.py lenstrain/compare lenstrain/estimators.py"
    ),
    "sklearn": "lenstrain/data/words.py lenstrain/audit/twins.py lenstrain/estimators.py",
    "threadpoolctl": "lenstrain/parallel.py",
    "gguf": "lenstrain/exchange/gguf.py",
    "typer": "cli",
    "rich": "cli",
}


def place_of(file: str) -> str:
    """The row that a file belongs to: its own at the top of a package, else that of its folder."""
    folder = str(Path(file).parent)
    return file if folder in PACKAGES else folder


def is_in(file: str, places: str) -> bool:
    """Whether a file is one of some places, or in one; subfolders are places of their own."""
    of = {file, place_of(file), file.partition("/")[0]}
    return not of.isdisjoint(places.split())


def may_import(file: str, other: str) -> bool:
    """Whether a file may import another one of this repository, or an outside package."""
    if not other.endswith(".py"):
        return is_in(file, OUTSIDE.get(other, "")) or other in sys.stdlib_module_names
    package = file.partition("/")[0]
    if other == f"{package}/errors.py" or (place_of(file) == place_of(other) and "/" in other):
        return True
    words = " ".join(RULES.get(row, "") for row in {file, place_of(file)}).split()
    named = [w if w.partition("/")[0] in PACKAGES else f"{package}/{w}" for w in words]
    return is_in(other, " ".join(named))


def imported(source: str, file: str) -> Iterator[str]:
    """What a module imports anywhere, function bodies and TYPE_CHECKING included: files of this
    repository by their path, other packages by their name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = Path(file).parent.parts
            above = [".".join(parts[: len(parts) - node.level + 1])] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield _file_of(name.replace("lens_cli", "cli")) or name.partition(".")[0]


def _file_of(name: str) -> str | None:
    """The file that a dotted name leads to; None if it is none of ours."""
    parts = name.split(".")
    while parts and parts[0] in PACKAGES:
        for file in (Path(*parts).with_suffix(".py"), Path(*parts, "__init__.py")):
            if (ROOT / file).exists():
                return str(file)
        del parts[-1]
    return None


def forbidden(source: str, file: str) -> set[str]:
    """What a module imports and may not."""
    return {other for other in imported(source, file) if not may_import(file, other)}


def modules() -> list[str]:
    """Every module of the three packages."""
    files = (f for package in PACKAGES for f in (ROOT / package).rglob("*.py"))
    return sorted(str(f.relative_to(ROOT)) for f in files)


@pytest.mark.parametrize("file", modules())
def test_a_module_imports_only_what_its_row_allows(file: str) -> None:
    assert place_of(file) in RULES, f"{file} is in no known folder: give its folder a row"
    assert forbidden((ROOT / file).read_text(), file) == set()


def test_every_row_is_about_something_that_is_there() -> None:
    places = {*RULES, *" ".join(OUTSIDE.values()).split()}
    assert [place for place in places if not (ROOT / place).exists()] == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("lenstrain/fit/adaptive.py", "import transformers"),
        ("lenstrain/fit/adaptive.py", "from transformers import AutoModel"),
        ("lenstrain/fit/adaptive.py", "def f():\n    import zarr.core"),
        ("lenstrain/fit/adaptive.py", "from lenscache.model.loading import load_model"),
        ("lenstrain/fit/adaptive.py", "import lenscache"),
        ("lenstrain/data/dataset.py", "from lenscache.extract.settings import ExtractSettings"),
        ("lenscache/store/round.py", "import torch"),
        ("lenscache/store/round.py", "from lenscache.store.verify.verify import verify_store"),
        ("lenscache/inference/runner.py", "from lenscache.store.store import Store"),
        ("lenscache/inference/runner.py", "from lenscache.store import store"),
        ("lenscache/memory.py", "import transformers"),
        ("cli/cache/plan.py", "from lenstrain import train"),
        ("cli/console.py", "from .meter import Meter"),
        ("cli/console.py", "from . import meter"),
        ("lenscache/terms.py", "if TYPE_CHECKING:\n    import numpy"),
        ("lenscache/store/views/selection.py", "import pandas"),
        ("lenscache/store/round.py", "import pandas"),
    ],
)
def test_the_check_can_fail(file: str, source: str) -> None:
    assert forbidden(source, file)


def test_a_file_in_no_known_folder_fails() -> None:
    for file in ("lenscache/utils.py", "lenscache/utils/text.py", "lenscache/store/deep/text.py"):
        assert place_of(file) not in RULES


def graph(without: set[tuple[str, str]]) -> dict[str, set[str]]:
    """Which file imports which, TYPE_CHECKING included."""
    found = {}
    for file in modules():
        names = set(imported((ROOT / file).read_text(), file))
        found[file] = {n for n in names if n.endswith(".py") and (file, n) not in without} - {file}
    return found


TO_XARRAY = ("lenscache/store/store.py", "lenscache/store/views/xarray_view.py")
PREDICT = ("lenstrain/pack/pack.py", "lenstrain/quick.py")


def test_no_module_imports_itself_by_a_detour() -> None:
    TopologicalSorter(graph({TO_XARRAY, PREDICT})).prepare()


@pytest.mark.parametrize("only", [TO_XARRAY, PREDICT])
def test_the_search_for_circles_can_fail(only: tuple[str, str]) -> None:
    """`Store.to_xarray` and `LensPack.predict` look up to what is built on stores and packs."""
    with pytest.raises(CycleError):
        TopologicalSorter(graph({TO_XARRAY, PREDICT} - {only})).prepare()


def run_blocked(code: str, *blocked: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which the blocked modules cannot be imported."""
    head = f"""
    import sys
    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {set(blocked) or set()!r}:
                raise ImportError(f"{{name}} is blocked")
    sys.meta_path.insert(0, Block())
    """
    script = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imports") / "store.zarr"
    extract(
        path,
        small_pack(n_examples=12),
        tiny_model(),
        ExtractSettings(max_new_tokens=4, block_rows=64),
    )
    return path


def test_a_store_is_read_without_torch_and_transformers(store: Path) -> None:
    code = f"""
    from lenscache import open_store
    for r in open_store({str(store)!r}).rounds():
        assert r.is_complete and r.read("prompt", 1).shape == (r.n_samples, 32), r.name
    print("read")
    """
    ran = run_blocked(code, "torch", "transformers")
    assert (ran.stdout, ran.returncode) == ("read\n", 0), ran.stderr


def test_a_store_is_exported_and_opened_as_a_dataset_without_torch_and_transformers(
    store: Path, tmp_path: Path
) -> None:
    code = f"""
    from lenscache import open_store
    from lenscache.store.views.export import export_store
    opened = open_store({str(store)!r})
    for to in ("safetensors", "npz", "parquet"):
        export_store(opened, {str(tmp_path)!r} + "/" + to, to)
    shape = opened.to_xarray(1).activation.isel(sample=0).values.shape
    print(shape, "concept" in opened.labels_frame(1))
    """
    ran = run_blocked(code, "torch", "transformers")
    assert (ran.stdout, ran.returncode) == ("(2, 3, 32) True\n", 0), ran.stderr


def test_a_store_is_read_and_exported_without_the_optional_packages(
    store: Path, tmp_path: Path
) -> None:
    code = f"""
    from lenscache import open_store
    from lenscache.errors import MissingPackageError
    from lenscache.store.views.export import export_store
    opened = open_store({str(store)!r})
    export_store(opened, {str(tmp_path)!r} + "/out", "safetensors")
    for attempt in (opened.to_xarray, opened.labels_frame):
        try:
            attempt()
        except MissingPackageError as error:
            print(error)
    """
    ran = run_blocked(code, "xarray", "pandas", "dask", "pyarrow", "s3fs")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("run `pip install '.[xarray]'`") == 2


def test_a_store_is_verified_and_repaired_without_torch_and_transformers(store: Path) -> None:
    code = f"""
    from lenscache.store.verify.repair import repair_store
    from lenscache.store.verify.verify import verify_store
    print(verify_store({str(store)!r}).is_damaged, repair_store({str(store)!r}).unmarked)
    """
    ran = run_blocked(code, "torch", "transformers")
    assert (ran.stdout, ran.returncode) == ("False []\n", 0), ran.stderr


def test_lenses_are_fitted_without_transformers_or_any_model_code(store: Path) -> None:
    code = f"""
    from lenstrain import FitSettings, fit_lenses, make_lens_pack, open_dataset
    dataset = open_dataset({str(store)!r})
    pack = make_lens_pack(fit_lenses(dataset, FitSettings()), dataset, FitSettings())
    banned = ("transformers", "lenscache.model", "lenscache.inference", "lenscache.extract")
    print(len(pack), [name for name in sys.modules if name.startswith(banned)])
    """
    ran = run_blocked(code, "transformers")
    assert (ran.stdout, ran.returncode) == ("7 []\n", 0), ran.stderr


def test_the_blocker_blocks(store: Path) -> None:
    ran = run_blocked("import torch", "torch")
    assert ran.returncode == 1
    assert "torch is blocked" in ran.stderr


def test_importing_the_commands_loads_nothing_heavy() -> None:
    code = (
        "import lens_cli.cache.app, lens_cli.train.app, sys; print(sorted({m.split('.')[0] for m "
        "in sys.modules}))"
    )
    loaded = set(ast.literal_eval(subprocess.check_output([sys.executable, "-c", code], text=True)))
    assert loaded & HEAVY <= {"typer", "rich"}
    assert loaded & INTERNAL == {"lens_cli"}


def test_starting_a_preflight_loads_no_model_code() -> None:
    """What waits for the checks holds no memory that they need."""
    code = "import lenscache.preflight, sys; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(ast.literal_eval(subprocess.check_output([sys.executable, "-c", code], text=True)))
    assert not loaded & HEAVY


def test_help_answers_with_torch_zarr_and_numpy_blocked() -> None:
    code = """
    sys.argv = ["lenscache", "--help"]
    from lens_cli.cache.app import main
    main()
    """
    ran = run_blocked(code, "torch", "zarr", "numpy", "transformers")
    assert ran.returncode == 0, ran.stderr
    assert "extract" in ran.stdout
