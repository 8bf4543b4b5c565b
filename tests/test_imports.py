"""Layers: which part of the package may import which, and what `import corrq_jax` loads."""

import ast
import pathlib
import subprocess
import sys

import pytest

import corrq_jax

PACKAGE = pathlib.Path(corrq_jax.__file__).parent

# Part of the package: (parts that it may import beside itself, third-party packages that it may).
# A part is a module or subpackage of corrq_jax; "corrq_jax" is its __init__.py. Each line
# imports from lines above it only. A new part needs a line here.
LAYERS = {
    "errors": ("", ""),
    "atomic": ("", ""),
    "cache": ("errors", "platformdirs"),
    "memory": ("", ""),
    "lazy": ("", "numpy"),
    "side_by_side": ("", "jax"),
    "report": ("", ""),
    "entropy": ("errors", "numpy pcodec"),
    "streams_version_1": ("", "numpy"),
    "core": ("", "jax numpy"),
    "fields": ("errors", "numpy"),
    "details": ("errors fields", "numpy"),
    "results": ("details errors fields", "numpy"),
    "readers": ("errors atomic lazy", "numpy ml_dtypes h5py jax orbax"),
    "models": ("cache errors readers", "jax numpy flax pooch requests tqdm"),
    "data": ("errors", "numpy PIL grain tensorflow_datasets"),
    "metrics": ("errors", "jax numpy"),
    "precision": ("errors", "jax"),
    "evaluation": ("errors metrics precision", "jax numpy"),
    "sharding": ("core", "jax"),
    "rows": ("", "numpy"),
    "codings": ("", ""),
    "on_device": ("core rows", "jax numpy"),
    "tensor": ("codings core on_device rows sharding", "jax numpy"),
    "streams": ("codings core entropy streams_version_1 tensor", "numpy"),
    "config": ("codings core errors", ""),
    "paths": ("errors tensor", "jax"),
    "knapsack": ("", "numpy"),
    "granularity": ("errors rows", "numpy"),
    "leaf": ("core errors lazy on_device rows side_by_side tensor", "jax numpy"),
    "encoding": ("core leaf on_device side_by_side tensor", "jax numpy"),
    "candidates": ("codings config core side_by_side", "jax numpy"),
    "trellis_leaf": ("core encoding leaf side_by_side tensor", "jax numpy"),
    "sharded_leaf": ("core encoding errors leaf sharding tensor", "jax numpy"),
    "rescale": ("core encoding granularity leaf side_by_side tensor", "jax numpy"),
    "array": ("core config errors sharding tensor", "jax"),
    "layout": ("codings core errors lazy paths report streams tensor", "jax numpy"),
    "rebuild": ("paths", ""),
    "archive": (
        "codings core errors layout lazy readers rebuild streams tensor",
        "jax numpy",
    ),
    "storage": ("archive atomic errors layout paths report", "jax"),
    "sharded_index": ("errors layout", ""),
    "sharded_saving": (
        "atomic errors layout readers report sharded_index storage",
        "jax numpy",
    ),
    "sharded_loading": (
        "archive core errors layout lazy paths readers rebuild sharded_index sharding tensor",
        "jax numpy",
    ),
    "anatomy": ("layout tensor", ""),
    "histograms": ("details streams tensor", "numpy"),
    "menu": (
        "candidates codings config core encoding entropy layout leaf memory on_device rescale"
        " sharded_leaf tensor trellis_leaf",
        "jax numpy",
    ),
    "budget": ("codings config errors knapsack menu report", "numpy"),
    "selection": ("config errors lazy leaf tensor", "jax numpy"),
    "tree": (
        "budget codings config errors granularity layout leaf menu paths report rescale selection"
        " sharded_leaf sharding tensor",
        "jax numpy",
    ),
    "stacks": ("codings config core errors layout paths report tensor tree", "jax numpy"),
    "matmul": ("core errors tensor", "jax"),
    "packed": ("paths tensor tree", "jax"),
    "parts": (
        "archive atomic config core errors leaf memory menu storage tensor tree",
        "jax numpy",
    ),
    "model_folders": ("errors readers", ""),
    "streaming": (
        "atomic config errors layout model_folders parts paths readers report selection storage"
        " tree",
        "",
    ),
    "restoring": (
        "archive atomic errors lazy model_folders paths readers tensor",
        "jax numpy",
    ),
    "signals": ("", "jax numpy"),
    "linear": ("signals", "numpy"),
    "propagation": ("signals", "numpy"),
    "interpreter": ("propagation signals", "numpy"),
    "importance": ("linear propagation signals", "numpy"),
    "wiring": ("errors importance interpreter linear paths propagation signals tree", "jax numpy"),
    "moments": ("errors paths report tensor wiring", "jax numpy"),
    "network": ("errors moments paths report stacks tree", "jax"),
    "export": ("errors paths tensor", "numpy"),
    "peers": ("core errors paths selection", "jax numpy"),
    "corrq_jax": (
        "archive array config core errors matmul packed report restoring sharded_loading"
        " sharded_saving storage streaming tensor tree",
        "",
    ),
    "method_styles": ("", ""),
    "plot_style": ("atomic errors method_styles", "numpy matplotlib"),
    "density_plots": ("errors method_styles plot_style results", "numpy matplotlib"),
    "layer_plots": ("errors method_styles plot_style results", "numpy matplotlib"),
    "plots": (
        "density_plots errors layer_plots method_styles plot_style results",
        "matplotlib",
    ),
    "paper": ("results", ""),
    "intervals": ("metrics", "numpy"),
    "comparison": ("details intervals results", "numpy"),
    "html_text": ("results", ""),
    "html_table": ("html_text paper results", ""),
    "html_data": ("comparison details html_text intervals method_styles metrics results", "numpy"),
    "figure_files": ("html_text plots results", ""),
    "html_report": (
        "atomic errors figure_files html_data html_table html_text method_styles paper results",
        "jinja2",
    ),
    "flax": ("errors network packed paths report tree", "jax flax"),
    "keras": ("errors network packed report tensor", "jax keras"),
    "orbax": ("errors readers tensor", "jax numpy orbax"),
    "equinox": ("errors network packed paths report", "jax equinox"),
    "fidelity": (
        "data details errors evaluation flax metrics models moments precision tree",
        "numpy jax",
    ),
    "illustrate": ("data details fidelity", "numpy"),
    "methods": ("config errors peers", ""),
    "sweep": (
        "anatomy corrq_jax core encoding errors evaluation histograms leaf menu methods moments"
        " paths peers report results storage tensor tree",
        "jax numpy",
    ),
    "experiment": (
        "atomic details errors evaluation fidelity histograms illustrate methods paths results"
        " sweep",
        "numpy",
    ),
    "cli": (
        "archive atomic cache comparison corrq_jax config data errors evaluation experiment"
        " fidelity flax html_report model_folders models paper paths plots readers report results"
        " streaming sweep tensor tree",
        "numpy typer rich jax",
    ),
    "__main__": ("cli", ""),
}
FORBIDDEN_AT_IMPORT = [
    *("flax", "matplotlib", "PIL", "h5py", "safetensors", "rich", "typer", "jinja2"),
    *("tensorflow_datasets", "tensorflow", "torch", "pcodec", "grain", "pooch", "keras"),
]


def sources():
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path):
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "corrq_jax" if first == "__init__" else first


def imported(text):
    """Dotted names that a module imports anywhere, those of `errors.require` included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "corrq_jax":
                yield from (f"corrq_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant))


def imports_of(text):
    """(parts of corrq_jax, third-party packages)."""
    parts, others = set(), set()
    for name in imported(text):
        top, _, rest = name.partition(".")
        if top == "corrq_jax":
            part = rest.partition(".")[0]
            parts.add(part if part in LAYERS else "corrq_jax")
        elif top not in sys.stdlib_module_names:
            others.add(top)
    return parts, others


def test_every_part_has_a_layer():
    assert {part_of(path) for path in sources()} <= LAYERS.keys()


def test_layers_point_down_only():
    order = list(LAYERS)
    for part, (allowed, _) in LAYERS.items():
        assert all(order.index(p) < order.index(part) for p in allowed.split()), part


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_imports_what_its_layer_may(path):
    part = part_of(path)
    allowed_parts, allowed_others = (set(names.split()) for names in LAYERS[part])
    parts, others = imports_of(path.read_text(encoding="utf-8"))
    assert parts - {part} <= allowed_parts
    assert others <= allowed_others


def test_the_table_holds_the_rules():
    quantization = {
        *("core", "config", "tensor", "leaf", "encoding", "tree", "layout", "paths"),
        *("archive", "storage"),
    }
    allowed = {part: set(parts.split()) for part, (parts, _) in LAYERS.items()}
    others = {part: set(names.split()) for part, (_, names) in LAYERS.items()}
    assert allowed["core"] == set()
    assert others["core"] == {"jax", "numpy"}
    for part in ("models", "data", "metrics", "precision", "evaluation", "readers"):
        assert not allowed[part] & quantization
    assert [part for part in allowed if "cli" in allowed[part]] == ["__main__"]
    assert [part for part in others if "flax" in others[part]] == ["models", "flax"]


def test_imports_are_found_wherever_they_are():
    text = """if True:
        import os, flax.nnx
        from corrq_jax import quantize, leaf
        def f():
            from corrq_jax.core.fit import fit
            return require("h5py", "files")
    """
    assert imports_of(text) == ({"corrq_jax", "leaf", "core"}, {"flax", "h5py"})


def test_import_loads_no_optional_dependency():
    code = f"""if True:
        import sys
        import corrq_jax
        loaded = [m for m in {FORBIDDEN_AT_IMPORT} if m in sys.modules]
        assert not loaded, loaded
    """
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
