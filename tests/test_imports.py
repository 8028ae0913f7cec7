"""Imports go one way, and stage two works without stage one's libraries (DESIGN.md, section 3)."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lenscache.extract import ExtractSettings, extract
from tests.models import tiny_model
from tests.packs import small_pack

ROOT = Path(__file__).parents[1]

HEAVY = {
    "torch",
    "transformers",
    "zarr",
    "numcodecs",
    "numpy",
    "scipy",
    "sklearn",
    "safetensors",
    "ml_dtypes",
    "platformdirs",
    "typer",
    "rich",
}
INTERNAL = {"lenscache", "lenstrain", "lens_cli", "cli"}

# Default deny: a module may import the standard library and what its line names, nothing else.
ALLOWED: dict[str, set[str]] = {
    "lenscache/__init__.py": {"lenscache"},
    "lenscache/errors.py": set(),
    "lenscache/concepts/pack.py": {"lenscache.errors"},
    "lenscache/store/header.py": {"lenscache.errors"},
    "lenscache/concepts/templates.py": {"lenscache.errors"},
    "lenscache/concepts/plan.py": {
        "numpy",
        "lenscache.concepts.pack",
        "lenscache.errors",
        "lenscache.concepts.templates",
    },
    "lenscache/bfloat16.py": {"numpy", "ml_dtypes", "zarr"},
    "lenscache/store/layout.py": {
        "numpy",
        "ml_dtypes",
        "zarr",
        "lenscache.bfloat16",
        "lenscache.errors",
        "lenscache.store.header",
        "lenscache.concepts.plan",
        "lenscache.store.quantization",
    },
    "lenscache/store/shards.py": {"google_crc32c", "numcodecs", "numpy", "zarr"},
    "lenscache/store/round.py": {
        "numpy",
        "zarr",
        "lenscache.errors",
        "lenscache.store.header",
        "lenscache.store.layout",
        "lenscache.store.quantization",
        "lenscache.store.shards",
    },
    "lenscache/store/store.py": {
        "numpy",
        "zarr",
        "pandas",
        "xarray",
        "lenscache.concepts.pack",
        "lenscache.errors",
        "lenscache.store.header",
        "lenscache.store.layout",
        "lenscache.concepts.plan",
        "lenscache.store.remote",
        "lenscache.store.round",
        "lenscache.store.views.xarray_view",
    },
    "lenscache/store/views/selection.py": {
        "numpy",
        "lenscache.errors",
        "lenscache.store.header",
        "lenscache.concepts.plan",
        "lenscache.store.round",
        "lenscache.store.store",
    },
    "lenscache/store/views/xarray_view.py": {
        "numpy",
        "pandas",
        "xarray",
        "lenscache.errors",
        "lenscache.store.header",
        "lenscache.store.round",
        "lenscache.store.views.selection",
        "lenscache.store.store",
    },
    "lenscache/drawing.py": {"matplotlib", "lenscache.errors"},
    "lenscache/inspection.py": {
        "numpy",
        "lenscache.errors",
        "lenscache.store.header",
        "lenscache.store.round",
        "lenscache.store.views.selection",
        "lenscache.store.store",
    },
    "lenscache/plots.py": {
        "matplotlib",
        "numpy",
        "lenscache.drawing",
        "lenscache.store.header",
        "lenscache.inspection",
        "lenscache.store.store",
    },
    "lenscache/store/views/export.py": {
        "numpy",
        "pyarrow",
        "lenscache.errors",
        "lenscache.store.header",
        "lenscache.store.remote",
        "lenscache.store.views.selection",
        "lenscache.store.store",
        "lenscache.store.disk",
    },
    "lenscache/store/labelsets.py": {
        "numpy",
        "zarr",
        "lenscache.concepts.pack",
        "lenscache.errors",
        "lenscache.store.layout",
        "lenscache.concepts.plan",
        "lenscache.store.round",
        "lenscache.store.store",
        "lenscache.store.objects",
    },
    "lenscache/store/remote.py": {"zarr", "lenscache.errors"},
    "lenscache/store/keys.py": {"numpy", "lenscache.store.header", "lenscache.concepts.plan"},
    "lenscache/store/verify/findings.py": set(),
    "lenscache/store/objects.py": {"numpy", "zarr", "lenscache.errors", "lenscache.store.layout"},
    "lenscache/store/verify/round.py": {
        "numpy",
        "zarr",
        "lenscache.errors",
        "lenscache.store.verify.findings",
        "lenscache.store.header",
        "lenscache.store.layout",
        "lenscache.store.objects",
        "lenscache.store.round",
        "lenscache.store.quantization",
    },
    "lenscache/store/verify/contents.py": {
        "numpy",
        "lenscache.concepts.pack",
        "lenscache.errors",
        "lenscache.store.verify.findings",
        "lenscache.store.header",
        "lenscache.store.keys",
        "lenscache.concepts.plan",
        "lenscache.store.verify.round",
    },
    "lenscache/store/verify/verify.py": {
        "numpy",
        "lenscache.concepts.pack",
        "lenscache.errors",
        "lenscache.store.verify.findings",
        "lenscache.store.labelsets",
        "lenscache.store.objects",
        "lenscache.store.verify.contents",
        "lenscache.store.verify.round",
        "lenscache.store.store",
    },
    "lenscache/store/verify/repair.py": {
        "lenscache.store.verify.findings",
        "lenscache.store.store",
        "lenscache.store.verify.verify",
    },
    "lenscache/model/tensor_parallel.py": {"torch", "lenscache.errors", "lenscache.store.header"},
    "lenscache/model/placement.py": {"accelerate", "torch", "lenscache.errors"},
    "lenscache/inference/following.py": {"lenscache.model.loading", "lenscache.inference.runner"},
    "lenscache/model/loading.py": {
        "platformdirs",
        "safetensors",
        "torch",
        "transformers",
        "lenscache.errors",
        "lenscache.model.fingerprint",
        "lenscache.model.memory",
        "lenscache.model.placement",
        "lenscache.model.tensor_parallel",
    },
    "lenscache/inference/capture.py": {"torch", "lenscache.store.header"},
    "lenscache/live/listening.py": {
        "torch",
        "lenscache.inference.capture",
        "lenscache.errors",
        "lenscache.store.header",
        "lenscache.model.loading",
    },
    "lenscache/inference/sampling.py": {"numpy", "torch"},
    "lenscache/inference/decoding.py": {
        "torch",
        "lenscache.inference.capture",
        "lenscache.model.loading",
    },
    "lenscache/inference/runner.py": {
        "numpy",
        "torch",
        "lenscache.inference.capture",
        "lenscache.inference.decoding",
        "lenscache.errors",
        "lenscache.inference.batches",
        "lenscache.store.header",
        "lenscache.model.loading",
        "lenscache.inference.sampling",
        "lenscache.model.tensor_parallel",
    },
    "lenscache/live/steering.py": {"torch", "lenscache.errors", "lenscache.model.loading"},
    "lenscache/live/continuation.py": {
        "numpy",
        "torch",
        "lenscache.errors",
        "lenscache.store.header",
        "lenscache.model.loading",
        "lenscache.inference.runner",
        "lenscache.live.steering",
    },
    "lenscache/store/quantization.py": {"numpy"},
    "lenscache/extract/settings.py": {"lenscache.errors", "lenscache.store.header"},
    "lenscache/store/disk.py": {
        "lenscache.errors",
        "lenscache.store.header",
        "lenscache.store.remote",
    },
    "lenscache/extract/reuse.py": {
        "numpy",
        "lenscache.errors",
        "lenscache.store.header",
        "lenscache.store.layout",
        "lenscache.store.round",
        "lenscache.store.store",
    },
    "lenscache/extract/planned_rounds.py": {
        "lenscache.concepts.pack",
        "lenscache.errors",
        "lenscache.concepts.plan",
        "lenscache.store.round",
        "lenscache.store.store",
    },
    "lenscache/extract/rows.py": {
        "numpy",
        "lenscache.concepts.pack",
        "lenscache.errors",
        "lenscache.store.header",
        "lenscache.model.loading",
        "lenscache.concepts.plan",
        "lenscache.inference.runner",
        "lenscache.extract.settings",
    },
    "lenscache/extract/partitions.py": {"lenscache.extract.settings", "lenscache.store.store"},
    "lenscache/extract/batch_size.py": {
        "numpy",
        "torch",
        "lenscache.extract.rows",
        "lenscache.inference.runner",
    },
    "lenscache/extract/api.py": {
        "lenscache.extract.batch_check",
        "lenscache.concepts.pack",
        "lenscache.extract.extraction",
        "lenscache.model.loading",
        "lenscache.extract.settings",
        "lenscache.store.store",
        "lenscache.extract.planned_rounds",
    },
    "lenscache/extract/extraction.py": {
        "numpy",
        "lenscache.extract.batch_check",
        "lenscache.extract.batch_size",
        "lenscache.concepts.pack",
        "lenscache.store.disk",
        "lenscache.errors",
        "lenscache.store.header",
        "lenscache.extract.rows",
        "lenscache.store.keys",
        "lenscache.model.loading",
        "lenscache.concepts.plan",
        "lenscache.extract.reuse",
        "lenscache.store.round",
        "lenscache.inference.runner",
        "lenscache.extract.settings",
        "lenscache.store.store",
        "lenscache.extract.planned_rounds",
    },
    "lenscache/extract/ray_driver.py": {
        "numpy",
        "ray",
        "lenscache.errors",
        "lenscache.extract.extraction",
        "lenscache.model.loading",
        "lenscache.cluster",
        "lenscache.extract.ray_worker",
        "lenscache.extract.settings",
        "lenscache.store.store",
    },
    "lenscache/inference/batches.py": {"numpy"},
    "lenscache/cluster.py": {"ray", "lenscache.errors"},
    "lenscache/extract/ray_worker.py": {
        "torch",
        "lenscache.extract.extraction",
        "lenscache.model.loading",
        "lenscache.extract.settings",
    },
    "lenscache/extract/batch_check.py": {
        "numpy",
        "lenscache.errors",
        "lenscache.store.header",
        "lenscache.extract.rows",
        "lenscache.store.quantization",
        "lenscache.store.round",
        "lenscache.inference.runner",
    },
    "lenscache/model/fingerprint.py": {"torch", "lenscache.model.placement"},
    "lenscache/extract/estimate.py": {
        "lenscache.extract.batch_size",
        "lenscache.concepts.pack",
        "lenscache.store.disk",
        "lenscache.extract.rows",
        "lenscache.model.loading",
        "lenscache.concepts.plan",
        "lenscache.inference.runner",
        "lenscache.extract.settings",
    },
    "lenscache/forecast/devices.py": {"torch", "lenscache.errors", "lenscache.model.memory"},
    "lenscache/forecast/roofline.py": {
        "numpy",
        "lenscache.forecast.devices",
        "lenscache.errors",
        "lenscache.model.loading",
    },
    "lenscache/forecast/footprint.py": {
        "lenscache.extract.batch_check",
        "lenscache.store.header",
        "lenscache.store.layout",
    },
    "lenscache/forecast/fleet.py": {"numpy", "lenscache.errors"},
    "lenscache/forecast/forecast.py": {
        "numpy",
        "lenscache.extract.batch_check",
        "lenscache.extract.batch_size",
        "lenscache.concepts.pack",
        "lenscache.forecast.devices",
        "lenscache.store.disk",
        "lenscache.errors",
        "lenscache.forecast.fleet",
        "lenscache.forecast.footprint",
        "lenscache.store.header",
        "lenscache.extract.rows",
        "lenscache.store.layout",
        "lenscache.model.loading",
        "lenscache.concepts.plan",
        "lenscache.forecast.roofline",
        "lenscache.extract.settings",
    },
    "lenscache/preflight/__init__.py": {"lenscache.preflight.results", "lenscache.preflight.run"},
    "lenscache/preflight/results.py": set(),
    "lenscache/preflight/conclusion.py": {"lenscache.preflight.results"},
    "lenscache/preflight/process.py": {"lenscache.errors", "lenscache.preflight.results"},
    "lenscache/preflight/run.py": {
        "lenscache.errors",
        "lenscache.preflight.conclusion",
        "lenscache.preflight.process",
        "lenscache.preflight.results",
    },
    "lenscache/preflight/worker.py": {
        "lenscache.errors",
        "lenscache.model.loading",
        "lenscache.preflight.results",
    },
    "lenscache/model/memory.py": set(),
    "lenscache/preflight/watch.py": {"torch"},
    "lenscache/preflight/directions.py": {"numpy", "lenscache.preflight.results"},
    "lenscache/preflight/texts.py": {
        "torch",
        "lenscache.concepts.pack",
        "lenscache.model.loading",
        "lenscache.preflight.results",
        "lenscache.concepts.plan",
    },
    "lenscache/preflight/models.py": {
        "torch",
        "lenscache.errors",
        "lenscache.model.loading",
        "lenscache.model.memory",
    },
    "lenscache/preflight/precision.py": {
        "numpy",
        "torch",
        "lenscache.errors",
        "lenscache.model.loading",
        "lenscache.preflight.models",
        "lenscache.preflight.results",
        "lenscache.preflight.texts",
        "lenscache.preflight.watch",
        "lenscache.inference.runner",
    },
    "lenscache/preflight/batches.py": {
        "torch",
        "lenscache.errors",
        "lenscache.model.loading",
        "lenscache.preflight.conclusion",
        "lenscache.model.memory",
        "lenscache.preflight.models",
        "lenscache.preflight.results",
        "lenscache.preflight.texts",
        "lenscache.inference.runner",
    },
    "lenscache/preflight/speed.py": {
        "torch",
        "lenscache.errors",
        "lenscache.model.loading",
        "lenscache.model.memory",
        "lenscache.preflight.models",
        "lenscache.preflight.results",
        "lenscache.preflight.texts",
        "lenscache.inference.runner",
    },
    "lenscache/preflight/steering.py": {
        "numpy",
        "torch",
        "lenscache.inference.capture",
        "lenscache.errors",
        "lenscache.model.loading",
        "lenscache.preflight.directions",
        "lenscache.preflight.models",
        "lenscache.preflight.results",
        "lenscache.preflight.texts",
        "lenscache.preflight.watch",
        "lenscache.live.steering",
    },
    "lenscache/concepts/importers/__init__.py": set(),
    "lenscache/concepts/importers/report.py": {"lenscache.concepts.pack"},
    "lenscache/concepts/quality.py": {"lenscache.concepts.pack"},
    "lenscache/concepts/importers/labelled.py": {
        "pyarrow",
        "lenscache.concepts.pack",
        "lenscache.errors",
        "lenscache.concepts.importers.report",
    },
    "lenscache/concepts/importers/links.py": {
        "lenscache.errors",
        "lenscache.concepts.importers.report",
    },
    "lenscache/concepts/importers/hatcat.py": {
        "lenscache.concepts.pack",
        "lenscache.errors",
        "lenscache.concepts.importers.links",
        "lenscache.concepts.importers.report",
    },
    "lenscache/concepts/importers/kif.py": {
        "lenscache.concepts.pack",
        "lenscache.errors",
        "lenscache.concepts.importers.links",
        "lenscache.concepts.importers.report",
    },
    "lenscache/concepts/importers/wordnet.py": {
        "lenscache.concepts.pack",
        "lenscache.errors",
        "lenscache.concepts.importers.links",
        "lenscache.concepts.importers.report",
    },
    "lenstrain/__init__.py": {"lenstrain"},
    "lenstrain/errors.py": set(),
    "lenstrain/data/dataset.py": {
        "numpy",
        "lenscache.concepts.pack",
        "lenscache.errors",
        "lenscache.store.header",
        "lenscache.store.labelsets",
        "lenscache.concepts.plan",
        "lenscache.store.round",
        "lenscache.store.store",
        "lenstrain.errors",
    },
    "lenstrain/fit/iterations.py": {
        "numpy",
        "lenstrain.metrics.score",
        "lenstrain.fit.choice",
        "lenstrain.fit.controls",
        "lenstrain.data.dataset",
        "lenstrain.fit.directions",
        "lenstrain.families.contract",
        "lenstrain.data.features",
        "lenstrain.pack.lens",
        "lenstrain.fit.measure",
        "lenstrain.parallel",
        "lenstrain.settings",
        "lenstrain.data.rows",
    },
    "lenstrain/families/checks.py": {"numpy", "lenstrain.errors"},
    "lenstrain/parallel.py": {"threadpoolctl", "torch"},
    "lenstrain/families/logistic.py": {"torch"},
    "lenstrain/families/linear.py": {
        "numpy",
        "torch",
        "lenstrain.families.checks",
        "lenstrain.errors",
        "lenstrain.families.logistic",
        "lenstrain.parallel",
    },
    "lenstrain/families/mean_difference.py": {
        "numpy",
        "scipy",
        "torch",
        "lenstrain.families.checks",
        "lenstrain.errors",
        "lenstrain.families.linear",
    },
    "lenstrain/families/mlp.py": {
        "numpy",
        "scipy",
        "torch",
        "lenstrain.families.checks",
        "lenstrain.errors",
        "lenstrain.families.linear",
    },
    "lenstrain/metrics/score.py": {"numpy"},
    "lenstrain/metrics/calibrators.py": {"numpy", "scipy"},
    "lenstrain/settings.py": {
        "lenstrain.metrics.score",
        "lenstrain.data.dataset",
        "lenstrain.errors",
    },
    "lenstrain/data/rows.py": {
        "numpy",
        "lenstrain.metrics.score",
        "lenstrain.data.dataset",
        "lenstrain.errors",
        "lenstrain.settings",
    },
    "lenstrain/data/features.py": {
        "numpy",
        "torch",
        "lenstrain.data.dataset",
        "lenstrain.errors",
        "lenstrain.families.linear",
    },
    "lenstrain/data/words.py": {
        "numpy",
        "scipy",
        "sklearn",
        "lenstrain.data.dataset",
        "lenstrain.errors",
        "lenstrain.data.features",
    },
    "lenstrain/families/contract.py": {
        "numpy",
        "torch",
        "lenstrain.data.features",
        "lenstrain.families.linear",
        "lenstrain.families.mean_difference",
        "lenstrain.families.mlp",
    },
    "lenstrain/pack/lens.py": {
        "numpy",
        "lenstrain.metrics.score",
        "lenstrain.families.contract",
        "lenstrain.families.linear",
        "lenstrain.metrics.calibrators",
    },
    "lenstrain/fit/directions.py": {
        "numpy",
        "torch",
        "lenstrain.data.dataset",
        "lenstrain.data.features",
        "lenstrain.pack.lens",
        "lenstrain.data.rows",
    },
    "lenstrain/fit/choice.py": {
        "numpy",
        "lenstrain.data.dataset",
        "lenstrain.errors",
        "lenstrain.data.features",
        "lenstrain.families.linear",
        "lenstrain.parallel",
        "lenstrain.settings",
        "lenstrain.data.rows",
    },
    "lenstrain/fit/measure.py": {
        "numpy",
        "lenstrain.metrics.score",
        "lenstrain.data.dataset",
        "lenstrain.families.contract",
        "lenstrain.data.features",
        "lenstrain.pack.lens",
        "lenstrain.metrics.calibrators",
        "lenstrain.settings",
        "lenstrain.data.rows",
    },
    "lenstrain/fit/controls.py": {
        "numpy",
        "torch",
        "lenstrain.metrics.score",
        "lenstrain.data.dataset",
        "lenstrain.families.contract",
        "lenstrain.data.features",
        "lenstrain.families.linear",
        "lenstrain.fit.measure",
        "lenstrain.settings",
        "lenstrain.data.rows",
        "lenstrain.data.words",
    },
    "lenstrain/fit/adaptive.py": {
        "numpy",
        "lenstrain.metrics.score",
        "lenstrain.fit.choice",
        "lenstrain.fit.controls",
        "lenstrain.data.dataset",
        "lenstrain.errors",
        "lenstrain.families.contract",
        "lenstrain.data.features",
        "lenstrain.fit.iterations",
        "lenstrain.pack.lens",
        "lenstrain.fit.measure",
        "lenstrain.settings",
        "lenstrain.data.rows",
        "lenstrain.data.words",
    },
    "lenstrain/pack/tensors.py": {
        "numpy",
        "scipy",
        "lenstrain.families.contract",
        "lenstrain.pack.lens",
        "lenstrain.families.linear",
        "lenstrain.families.mlp",
    },
    "lenstrain/pack/folder.py": {
        "numpy",
        "safetensors",
        "lenstrain.metrics.score",
        "lenstrain.errors",
        "lenstrain.families.contract",
        "lenstrain.pack.lens",
        "lenstrain.metrics.calibrators",
        "lenstrain.pack.tensors",
        "lenstrain.data.words",
    },
    "lenstrain/pack/pack.py": {
        "numpy",
        "lenstrain.metrics.score",
        "lenstrain.data.dataset",
        "lenstrain.pack.lens",
        "lenstrain.families.linear",
        "lenstrain.pack.folder",
        "lenstrain.data.words",
    },
    "lenstrain/fit/to_pack.py": {
        "lenstrain.fit.adaptive",
        "lenstrain.metrics.score",
        "lenstrain.data.dataset",
        "lenstrain.pack.lens",
        "lenstrain.pack.pack",
        "lenstrain.pack.folder",
    },
    "lenstrain/compare/heldout.py": {
        "numpy",
        "scipy",
        "lenstrain.data.dataset",
        "lenstrain.errors",
        "lenstrain.pack.pack",
    },
    "lenstrain/compare/rivals.py": {
        "numpy",
        "lenstrain.data.dataset",
        "lenstrain.compare.heldout",
        "lenstrain.pack.pack",
    },
    "lenstrain/fit/refine.py": {
        "numpy",
        "lenstrain.fit.adaptive",
        "lenstrain.fit.choice",
        "lenstrain.data.dataset",
        "lenstrain.fit.measure",
        "lenstrain.compare.rivals",
        "lenstrain.settings",
        "lenstrain.data.rows",
    },
    "lenstrain/compare/agreement.py": {
        "numpy",
        "scipy",
        "lenstrain.data.dataset",
        "lenstrain.compare.heldout",
        "lenstrain.pack.pack",
    },
    "lenstrain/compare/two_packs.py": {
        "numpy",
        "lenstrain.metrics.score",
        "lenstrain.data.dataset",
        "lenstrain.errors",
        "lenstrain.compare.heldout",
        "lenstrain.pack.pack",
        "lenstrain.settings",
        "lenstrain.data.rows",
    },
    "lenstrain/compare/impact.py": {
        "numpy",
        "lenstrain.metrics.score",
        "lenstrain.errors",
        "lenstrain.pack.lens",
        "lenstrain.pack.pack",
        "lenstrain.settings",
    },
    "lenstrain/fit/train.py": {
        "lenstrain.fit.adaptive",
        "lenstrain.compare.agreement",
        "lenstrain.fit.choice",
        "lenstrain.data.dataset",
        "lenstrain.errors",
        "lenstrain.pack.pack",
        "lenstrain.compare.rivals",
        "lenstrain.fit.to_pack",
        "lenstrain.fit.refine",
        "lenstrain.settings",
    },
    "lenstrain/sweeps/existing.py": {
        "lenstrain.data.dataset",
        "lenstrain.pack.pack",
        "lenstrain.pack.folder",
        "lenstrain.fit.to_pack",
        "lenstrain.settings",
    },
    "lenstrain/sweeps/grid.py": {
        "lenstrain.fit.choice",
        "lenstrain.data.dataset",
        "lenstrain.errors",
        "lenstrain.pack.pack",
        "lenstrain.pack.folder",
        "lenstrain.sweeps.existing",
        "lenstrain.settings",
        "lenstrain.fit.train",
    },
    "lenstrain/sweeps/ray.py": {
        "ray",
        "lenstrain.fit.choice",
        "lenstrain.errors",
        "lenstrain.sweeps.grid",
        "lenstrain.pack.pack",
    },
    "lenstrain/audit/twins.py": {"numpy", "scipy", "sklearn", "lenstrain.data.dataset"},
    "lenstrain/audit/audit.py": {
        "numpy",
        "scipy",
        "lenstrain.data.dataset",
        "lenstrain.audit.twins",
        "lenstrain.errors",
        "lenstrain.settings",
    },
    "lenstrain/fit/follow.py": {
        "lenstrain.fit.choice",
        "lenstrain.data.dataset",
        "lenstrain.errors",
        "lenstrain.pack.lens",
        "lenstrain.pack.pack",
        "lenstrain.pack.folder",
        "lenstrain.settings",
        "lenstrain.fit.train",
    },
    "lenstrain/live/steering.py": {
        "numpy",
        "lenstrain.metrics.score",
        "lenstrain.errors",
        "lenstrain.pack.lens",
        "lenstrain.pack.pack",
        "lenstrain.families.linear",
    },
    "lenstrain/live/naming_rule.py": {
        "numpy",
        "lenstrain.metrics.score",
        "lenstrain.errors",
        "lenstrain.pack.lens",
        "lenstrain.pack.pack",
    },
    "lenstrain/live/device_lenses.py": {
        "numpy",
        "torch",
        "lenstrain.pack.lens",
        "lenstrain.families.linear",
        "lenstrain.families.mlp",
    },
    "lenstrain/live/running_pool.py": {"torch"},
    "lenstrain/live/monitor.py": {
        "torch",
        "lenstrain.errors",
        "lenstrain.pack.pack",
        "lenstrain.live.naming_rule",
        "lenstrain.live.device_lenses",
        "lenstrain.live.running_pool",
    },
    "lenstrain/live/reading.py": {
        "numpy",
        "lenstrain.errors",
        "lenstrain.pack.pack",
        "lenstrain.live.naming_rule",
    },
    "lenstrain/live/page.py": {"lenstrain.live.naming_rule", "lenstrain.live.reading"},
    "lenstrain/fit/transfer.py": {
        "numpy",
        "lenstrain.fit.adaptive",
        "lenstrain.metrics.score",
        "lenstrain.data.dataset",
        "lenstrain.errors",
        "lenstrain.fit.measure",
        "lenstrain.settings",
        "lenstrain.data.rows",
    },
    "lenstrain/exchange/__init__.py": set(),
    "lenstrain/exchange/filenames.py": set(),
    "lenstrain/exchange/folder.py": {
        "numpy",
        "safetensors",
        "lenstrain.errors",
        "lenstrain.families.contract",
        "lenstrain.pack.lens",
        "lenstrain.pack.pack",
        "lenstrain.pack.folder",
        "lenstrain.pack.tensors",
    },
    "lenstrain/exchange/statedict.py": {
        "numpy",
        "torch",
        "lenstrain.errors",
        "lenstrain.families.contract",
        "lenstrain.families.linear",
        "lenstrain.families.mlp",
    },
    "lenstrain/exchange/hatcat.py": {
        "torch",
        "lenstrain.metrics.score",
        "lenstrain.errors",
        "lenstrain.exchange.filenames",
        "lenstrain.exchange.folder",
        "lenstrain.exchange.statedict",
        "lenstrain.families.contract",
        "lenstrain.pack.lens",
        "lenstrain.pack.pack",
        "lenstrain.families.linear",
        "lenstrain.metrics.calibrators",
        "lenstrain.settings",
    },
    "lenstrain/exchange/gguf.py": {
        "gguf",
        "numpy",
        "lenstrain.errors",
        "lenstrain.exchange.filenames",
        "lenstrain.exchange.folder",
        "lenstrain.pack.lens",
        "lenstrain.pack.pack",
        "lenstrain.live.steering",
    },
    "lenstrain/exchange/export.py": {
        "lenstrain.metrics.score",
        "lenstrain.errors",
        "lenstrain.exchange.gguf",
        "lenstrain.exchange.hatcat",
        "lenstrain.pack.lens",
        "lenstrain.pack.pack",
        "lenstrain.pack.folder",
        "lenstrain.live.steering",
    },
    "lenstrain/drawing.py": {"matplotlib", "lenstrain.errors"},
    "lenstrain/inspection.py": {
        "numpy",
        "lenstrain.fit.adaptive",
        "lenstrain.data.dataset",
        "lenstrain.errors",
        "lenstrain.compare.heldout",
        "lenstrain.pack.lens",
        "lenstrain.pack.pack",
        "lenstrain.families.linear",
        "lenstrain.settings",
    },
    "lenstrain/plots.py": {
        "matplotlib",
        "numpy",
        "lenstrain.metrics.score",
        "lenstrain.data.dataset",
        "lenstrain.drawing",
        "lenstrain.errors",
        "lenstrain.inspection",
        "lenstrain.pack.lens",
        "lenstrain.pack.pack",
    },
    "lenstrain/report/__init__.py": {"lenstrain.report.data", "lenstrain.report.page"},
    "lenstrain/report/data.py": {
        "lenstrain.data.dataset",
        "lenstrain.errors",
        "lenstrain.compare.impact",
        "lenstrain.pack.lens",
        "lenstrain.pack.pack",
        "lenstrain.report.samples",
        "lenstrain.report.tree",
    },
    "lenstrain/report/page.py": {"lenstrain.errors", "lenstrain.report.data"},
    "lenstrain/report/samples.py": {
        "numpy",
        "lenstrain.data.dataset",
        "lenstrain.compare.heldout",
        "lenstrain.pack.lens",
        "lenstrain.pack.pack",
    },
    "lenstrain/report/tree.py": {"lenstrain.data.dataset", "lenstrain.pack.pack"},
    "cli/cache/extract.py": {"typer", "cli", "lenscache"},
    "cli/__init__.py": set(),
    "cli/train/exchange.py": {"typer", "cli", "lenstrain"},
    "cli/cache/plan.py": {"typer", "cli", "lenscache"},
    "cli/cache/preflight.py": {"typer", "cli", "lenscache"},
    "cli/cache/preflight_lenses.py": {"numpy", "lenscache", "lenstrain"},
    "cli/cache/preflight_report.py": {"rich", "cli"},
    "cli/train/audit.py": {"typer", "rich", "cli", "lenstrain"},
    "cli/train/grid.py": {"typer", "rich", "cli", "lenstrain"},
    "cli/train/lenses.py": {"typer", "rich", "cli", "lenstrain"},
    "cli/train/report.py": {"typer", "cli", "lenstrain"},
    "cli/train/read.py": {"typer", "rich", "cli", "lenscache", "lenstrain"},
    "cli/models.py": {"typer", "cli", "lenscache", "lenstrain"},
    "cli/train/steer.py": {"numpy", "typer", "rich", "cli", "lenscache", "lenstrain"},
    "cli/runlog.py": {"cli"},
    "cli/console.py": {"typer", "rich", "cli"},
    "cli/options.py": {"typer", "lenscache.concepts.pack", "lenscache.concepts.templates"},
    "cli/cache/pack.py": {"typer", "rich", "cli", "lenscache"},
    "cli/cache/printing.py": {"cli"},
    "cli/cache/app.py": {"typer", "cli", "lenscache"},
    "cli/train/app.py": {"typer", "cli", "lenstrain"},
}


def imported(source: str) -> set[str]:
    """Dotted names that a module imports anywhere, function bodies and TYPE_CHECKING included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add("cli" if node.level else str(node.module))
    return names


def forbidden(source: str, allowed: set[str]) -> set[str]:
    outside = {
        name for name in imported(source) if name.split(".")[0] not in sys.stdlib_module_names
    }
    return {
        name
        for name in outside
        if name not in allowed and not {name.split(".")[0]} & _tops(allowed)
    }


def _tops(allowed: set[str]) -> set[str]:
    """A bare name allows its submodules; a dotted name allows itself alone."""
    return {name for name in allowed if "." not in name}


def modules() -> list[str]:
    files = (
        f for package in ("lenscache", "lenstrain", "cli") for f in (ROOT / package).rglob("*.py")
    )
    return sorted(str(f.relative_to(ROOT)) for f in files)


def test_every_module_has_a_line_in_the_table() -> None:
    assert modules() == sorted(ALLOWED)


@pytest.mark.parametrize("module", ALLOWED)
def test_module_imports_only_what_its_line_allows(module: str) -> None:
    assert forbidden((ROOT / module).read_text(), ALLOWED[module]) == set()


@pytest.mark.parametrize(
    "source",
    [
        "import transformers",
        "from transformers import AutoModel",
        "def f():\n    import zarr.core",
        "from lenscache.model.loading import load_model",
        "import lenscache",
    ],
)
def test_the_check_can_fail(source: str) -> None:
    assert forbidden(source, ALLOWED["lenstrain/fit/adaptive.py"])


def test_only_the_dataset_of_lenstrain_knows_lenscache() -> None:
    knowing = {
        m
        for m, names in ALLOWED.items()
        if m.startswith("lenstrain/")
        for n in names
        if n.startswith("lenscache")
    }
    assert knowing == {"lenstrain/data/dataset.py"}


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
    print(opened.to_xarray(1).activation.isel(sample=0).values.shape, "concept" in opened.labels_frame(1))
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
    assert ran.stdout.count("run `pip install 'lenscache[xarray]'`") == 2


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
    banned = {{"transformers", "lenscache.model.loading", "lenscache.inference.runner", "lenscache.inference.capture"}} & set(sys.modules)
    print(len(pack), banned)
    """
    ran = run_blocked(code, "transformers")
    assert (ran.stdout, ran.returncode) == ("7 set()\n", 0), ran.stderr


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
