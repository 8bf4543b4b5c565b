"""The public interface in one place: what a release may not take away or rename."""

import importlib
import inspect

import pytest

# What is not listed here is internal.
PUBLIC = {
    "corrq_jax": """
        Archive Config CorrqError FileFormatError InputError MissingDependencyError QuantizedTensor
        Report Row Skipped correlation dequantize dequantize_file load load_sharded matmul packed
        quantize quantize_array quantize_file save save_sharded""",
    "corrq_jax.data": """
        BATCH FASHION_CLASSES FASHION_MNIST PHOTOS FashionMnist ImageFolder Photo Pictures
        Preprocess Record Source TfdsSource all_views batches example_batches load load_photos
        preprocessing read_fashion_mnist read_folder tfds_source views""",
    "corrq_jax.equinox": "Apply QuantizedModel dequantize functional quantize",
    "corrq_jax.evaluation": """
        Metrics UNKNOWN change_interval evaluate in_dtype logits metrics_from_logits
        share_interval""",
    "corrq_jax.export": "Encoded Rows to_numpy unpacked_codes",
    "corrq_jax.flax": "Apply QuantizedModel dequantize functional quantize",
    "corrq_jax.keras": "Apply QuantizedModel assign dequantize functional quantize",
    "corrq_jax.methods": "Method cells methods peer_cells short_cells without_wiring",
    "corrq_jax.models": "ModelInfo create info load names trained_weights",
    "corrq_jax.moments": "Matched Site Wiring match_moments trace",
    "corrq_jax.orbax": "from_arrays load save to_arrays",
    "corrq_jax.peers": """
        CHANNEL PEERS TENSOR Groups Layout Peer PeerRow absmax half_quadratic kmeans min_max
        normal_float peers stored_bits""",
    "corrq_jax.readers": "open_weights read_checkpoint read_weights write_weights",
    "corrq_jax.stacks": "quantize",
}


def names_in(module):
    """What a module offers: its __all__, or else what is defined in it without an underscore."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    own = (n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__)
    return sorted(name for name in own if not name.startswith("_"))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_module_offers_what_is_listed(name):
    assert names_in(importlib.import_module(name)) == sorted(PUBLIC[name].split())


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_says_what_it_is(name):
    module = importlib.import_module(name)
    for public in PUBLIC[name].split():
        value = getattr(module, public)
        if inspect.isclass(value) or callable(value):
            assert inspect.getdoc(value), public
