"""`from src import embed, load_encoder`: light until it is used, and both the command and the function."""

import subprocess
import sys

import numpy as np


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, src\nassert not {'torch', 'numpy', 'lightning', 'timm'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_short_names_are_the_long_ones():
    import src
    from src import load_classifier, load_encoder, save_encoder
    from src.encoders import load, save

    assert load_encoder is load.load_encoder and load_classifier is load.load_classifier
    assert save_encoder is save.save_encoder
    assert set(src.__all__) == {"embed", "load_classifier", "load_encoder", "save_encoder"}


def test_embed_is_the_command_and_the_function():
    from src import embed
    from src.embed import embed as function
    from src.models import create_encoder

    encoder = create_encoder("tiny").eval()
    samples = np.random.default_rng(0).normal(size=16000).astype(np.float32) * 0.1
    assert np.array_equal(embed(samples, encoder, 16000), function(samples, encoder, 16000))
    assert callable(embed.main) and embed.parse(["a", "--encoder", "e", "--out", "o.parquet"]).inputs == ["a"]
