"""A real audio network: Silero's voice activity detector before and after quantization.

    pip download --no-deps --no-binary :all: silero-vad==6.2.3        # 29 MB
    python benchmarks/speech.py silero_vad-6.2.3.tar.gz

Weights and a minute of speech (MIT, by the Silero team) are read from the source package. The
network is a spectrum, four convolutions and an LSTM, which carries its state from each 32 ms to the
next. For each way to quantize: bytes of the file, the mean and largest change of the probability of
speech, and the share of the 1875 pieces whose decision at 0.5 stays. The spectrum's kernel, a fixed
table of sines, is left in float. With --onnx (packages onnx and onnxruntime) the forward pass is
first compared with an ONNX file of the package, which holds other weights of the same network.
"""

import io
import tarfile
import wave

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from safetensors.numpy import load as read_safetensors
from ways import arguments, print_table

import corrq_jax as corrq

DATA = "src/silero_vad/data/"
PIECE, BEFORE, PAD, STRIDE = 512, 64, 64, 128
SELECT = ("conv?.weight", "lstm_cell.weight_*", "final_conv.weight")


def convolution(params, name, x, stride=1, padding=1):
    """Of PyTorch's layout: [batch, channels, time]."""
    kernel, spec = params[f"{name}.weight"], ("NCH", "OIH", "NCH")
    y = lax.conv_general_dilated(x, kernel, (stride,), [(padding, padding)], dimension_numbers=spec)
    return y + params[f"{name}.bias"][:, None] if f"{name}.bias" in params else y


def features(params, pieces):
    """float32[pieces, 128] of float32[pieces, BEFORE + PIECE]; no piece depends on another."""
    x = jnp.pad(pieces, ((0, 0), (0, PAD)), "reflect")[:, None]
    real, imaginary = jnp.split(convolution(params, "stft_conv", x, STRIDE, 0), 2, axis=1)
    x = jnp.sqrt(real**2 + imaginary**2)
    for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 2), ("conv4", 1)):
        x = jax.nn.relu(convolution(params, name, x, stride))
    return x[..., 0]


def speech(params, pieces):
    """Probability of speech in each piece; quantized parameters are decoded inside."""
    params = corrq.dequantize(params)
    fixed = params["lstm_cell.bias_ih"] + params["lstm_cell.bias_hh"]

    def step(state, x):
        h, c = state
        gates = params["lstm_cell.weight_ih"] @ x + params["lstm_cell.weight_hh"] @ h + fixed
        i, f, g, o = jnp.split(gates, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    start = jnp.zeros(params["lstm_cell.weight_hh"].shape[1])
    _, hidden = lax.scan(step, (start, start), features(params, pieces))
    last = jax.nn.relu(hidden) @ params["final_conv.weight"][0, :, 0] + params["final_conv.bias"][0]
    return jax.nn.sigmoid(last)


def cut(sound):
    """Pieces of 32 ms with what comes before each."""
    count = len(sound) // PIECE
    padded = np.concatenate([np.zeros(BEFORE, np.float32), sound])
    return np.stack([padded[i * PIECE : (i + 1) * PIECE + BEFORE] for i in range(count)])


def check(model, pieces):
    """That the forward pass is that of the package's ONNX file, whose weights are others."""
    import onnx
    import onnxruntime

    own = {"model.stft.forward_basis_buffer": "stft_conv.weight"}
    for part in ("weight", "bias"):
        own |= {f"model.encoder.{i}.reparam_conv.{part}": f"conv{i + 1}.{part}" for i in range(4)}
        own |= {f"model.decoder.rnn.{part}_{x}": f"lstm_cell.{part}_{x}" for x in ("ih", "hh")}
        own[f"model.decoder.decoder.2.{part}"] = f"final_conv.{part}"
    stored = onnx.load_from_string(model).graph.initializer
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in stored}
    found = jax.jit(speech)({name: arrays[theirs] for theirs, name in own.items()}, pieces)
    session = onnxruntime.InferenceSession(model)
    state, expected = np.zeros((2, 1, 128), np.float32), []
    for piece in pieces:
        feed = {"input": piece[None], "state": state, "sr": np.array(16000, np.int64)}
        out, state = session.run(None, feed)
        expected.append(out[0, 0])
    difference = np.abs(np.asarray(found) - expected).max()
    print(f"forward pass with the ONNX file's weights: largest difference to it {difference:.2g}")
    assert difference < 1e-3  # float32, over 1875 steps of an LSTM


def main():
    parser = arguments(__doc__, "package")
    parser.add_argument("--onnx", action="store_true")
    given = parser.parse_args()
    with tarfile.open(given.package) as package:
        names = {name.partition("/")[2]: name for name in package.getnames()}

        def read(name):
            return package.extractfile(names[name]).read()

        params = read_safetensors(read(f"{DATA}silero_vad_16k.safetensors"))
        with wave.open(io.BytesIO(read("tests/data/test.wav"))) as sound:
            assert (sound.getframerate(), sound.getnchannels()) == (16000, 1)
            samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
        model = read(f"{DATA}silero_vad_16k_op15.onnx")
    pieces = cut(samples.astype(np.float32) / 32768)
    jax.config.update("jax_default_matmul_precision", "highest")
    step = jax.jit(speech)
    exact = np.asarray(step(params, pieces))
    print(f"{len(pieces)} pieces, {(exact > 0.5).mean():.1%} speech", end="; ")
    print(f"float file {sum(a.nbytes for a in params.values()):,} bytes")
    if given.onnx:
        check(model, pieces)

    def figures(quantized):
        found = np.asarray(step(quantized, pieces))
        change = np.abs(found - exact)
        stays = ((found > 0.5) == (exact > 0.5)).mean()
        return f"{change.mean():.4f}", f"{change.max():.3f}", f"{stays:.1%}"

    columns = ("mean change", "largest change", "decision stays")
    print_table(params, given.way, columns, figures, select=SELECT)


if __name__ == "__main__":
    main()
