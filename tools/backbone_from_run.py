"""Take the backbone out of a run with `--train-backbone`, as a file for `--backbone.pretrained`.

splip train --config sample --method clip-ln --loss.jigsaw 0 --data.root sample --out runs/backbone
python tools/backbone_from_run.py runs/backbone/best.pt backbone.pt
splip train --config sample-prompts --data.root sample --backbone.pretrained backbone.pt --out runs/prompts
"""

import argparse
from pathlib import Path

import torch

from splip.model import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="best.pt of a run")
    parser.add_argument("out", type=Path, help="file to write")
    args = parser.parse_args()
    model = load_model(args.checkpoint)
    torch.save(model.plain_backbone(), args.out)
    print(f"{args.out}: {model.config.backbone.name}, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
