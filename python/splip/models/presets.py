"""Models under short names, with what is to be known before they are downloaded. Imports nothing heavy.

Sizes are those of open_clip's and timm's architectures, and a test builds them to see. Licences are of the weights, as
``source`` says: timm's registry, the package itself, or the card of the repository when this was written.
"""

from dataclasses import dataclass

LAION, APPLE = "the card of its repository", "timm's registry, for the same weights"


@dataclass(frozen=True)
class Preset:
    """A model under a short name."""

    model: str
    """What ``--model`` takes as well."""
    pixels: int
    """Side of a picture."""
    parameters: int
    """Of both towers."""
    image_parameters: int
    """Of the image tower: what a picture costs."""
    dimensions: int
    """Numbers of a vector."""
    words: int
    """Tokens of a text; 0: reads no words."""
    licence: str
    source: str
    """Where the licence stands."""
    timm: str | None
    """The image tower in timm's registry, whose licence is its own to say."""
    good_for: str


PRESETS: dict[str, Preset] = {
    "splip-tiny-3": Preset(
        "open_clip:splip-tiny-3", 64, 5_807_521, 2_526_880, 256, 32, "Apache-2.0", "the package", None,
        "the first minute: in the package, no download; drawn pictures of 1,223 nouns",
    ),
    "splip-tiny-2": Preset(
        "open_clip:splip-tiny-2", 64, 5_807_521, 2_526_880, 256, 32, "Apache-2.0", "the package", None,
        "its shorter predecessor, for galleries and checkpoints that name it",
    ),
    "splip-tiny": Preset(
        "open_clip:splip-tiny", 64, 5_807_521, 2_526_880, 256, 32, "Apache-2.0", "the package", None,
        "what the results of the methods are measured on; 839 emoji",
    ),
    "vit-b-32": Preset(
        "open_clip:ViT-B-32/laion2b_s34b_b79k", 224, 151_277_313, 87_849_216, 512, 77, "MIT", LAION,
        "vit_base_patch32_clip_224.laion2b", "a first index on a CPU: the quickest of the large ones",
    ),
    "vit-b-32-datacomp": Preset(
        "open_clip:ViT-B-32/datacomp_xl_s13b_b90k", 224, 151_277_313, 87_849_216, 512, 77, "MIT", LAION,
        "vit_base_patch32_clip_224.datacompxl", "as quick as vit-b-32, better filtered data",
    ),
    "vit-b-16-datacomp": Preset(
        "open_clip:ViT-B-16/datacomp_xl_s13b_b90k", 224, 149_620_737, 86_192_640, 512, 77, "MIT", LAION,
        "vit_base_patch16_clip_224.datacompxl", "finer patches: more detail, four times the work of vit-b-32",
    ),
    "vit-l-14-datacomp": Preset(
        "open_clip:ViT-L-14/datacomp_xl_s13b_b90k", 224, 427_616_513, 303_966_208, 768, 77, "MIT", LAION,
        "vit_large_patch14_clip_224.datacompxl", "quality where a GPU does the work",
    ),
    "siglip2-b-16": Preset(
        "open_clip:ViT-B-16-SigLIP2/webli", 224, 375_187_970, 92_884_224, 768, 64, "Apache-2.0", "timm's registry",
        "vit_base_patch16_siglip_224.v2_webli", "words of many languages",
    ),
    "mobileclip2-s0": Preset(
        "open_clip:MobileCLIP2-S0/dfndr2b", 256, 74_835_073, 11_406_976, 512, 77, "Apple AMLR: research only", APPLE,
        "fastvit_mci0.apple_mclip2_dfndr2b", "small processors; not for products",
    ),
    "mobileclip2-s2": Preset(
        "open_clip:MobileCLIP2-S2/dfndr2b", 256, 99_243_329, 35_815_232, 512, 77, "Apple AMLR: research only", APPLE,
        "fastvit_mci2.apple_mclip2_dfndr2b", "small processors, better than S0; not for products",
    ),
    "pe-core-b-16": Preset(
        "open_clip:PE-Core-B-16/meta", 224, 447_660_545, 93_673_984, 1024, 32, "Apache-2.0", "timm's registry",
        "vit_pe_core_base_patch16_224.fb", "strong for its size; long vectors",
    ),
    "eva02-b-16": Preset(
        "open_clip:EVA02-B-16/merged2b_s8b_b131k", 224, 149_691_137, 86_263_040, 512, 77, "MIT", "timm's registry",
        "eva02_base_patch16_clip_224.merged2b", "as large as vit-b-16-datacomp, distilled",
    ),
    "dinov2-s": Preset(
        "timm:vit_small_patch14_dinov2.lvd142m@224", 224, 21_628_800, 21_628_800, 384, 0, "Apache-2.0",
        "timm's registry", "vit_small_patch14_dinov2.lvd142m", "pictures that look alike; reads no words",
    ),
}  # fmt: skip
