"""Build a BERT engine through TensorRT's network API with the BERT plugins: something of size for `probe profile`.

    python examples/gpu/bert_engine.py bert.plan --layers 12 --batch 1 --sequence 128
    probe profile bert.plan --nsys --ncu --trtexec

Weights are random. TensorRT 8.6 to 10 have NVIDIA's plugins; the engine runs on the version and the card that built it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: the checkout is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness import engine
from harness.bert import model as bert
from harness.bert.network import NetworkOptions, populate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp16")
    given = parser.parse_args()
    config = bert.BertConfig(768, given.layers, 12, 3072, vocab_size=1000)
    shape = (given.batch, given.sequence)
    options = engine.BuildOptions(
        "trt", given.precision, opt_profiles=dict.fromkeys(bert.INPUTS, (shape, shape, shape))
    )
    network = populate(config, bert.random_weights(config), NetworkOptions(given.precision))
    content = engine.build(network, options).content
    assert isinstance(content, bytes)
    given.plan.write_bytes(content)
    print(f"{given.plan}: {len(content) / 1e6:.0f} MB, {given.layers} layers, batch {given.batch}, S {given.sequence}")


if __name__ == "__main__":
    main()
