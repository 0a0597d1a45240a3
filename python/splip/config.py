"""What can be set: one dataclass per verb, its YAML, and the order defaults < file < flags.

Field docstrings are the ``--help`` texts. This module imports no torch, so that ``--help`` is quick.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
import yaml

from splip import disk
from splip.errors import UserError, short

T = TypeVar("T")
CONFIGS = Path(__file__).parent / "configs"
LARGEST = 1 << 20  # bytes of a YAML file


@dataclass
class BackboneConfig:
    """The CLIP model that SpLIP adapts."""

    name: str = "ViT-B-32"
    """open_clip architecture (ViT-*), or splip-tiny."""
    pretrained: str | None = None
    """open_clip tag (openai, laion2b_s34b_b79k, ...), a weights file, or random; none: the weights in the package for
    splip-tiny, random ones for others."""
    seed: int = 0
    """Seed of random weights."""


@dataclass
class DataConfig:
    """Which pictures, and their split into seen and unseen classes."""

    root: Path | None = None
    """Folder of the data set or its parent; for a tree, the one that holds sketch/ and photo/."""
    dataset: Literal["tree", "sketchy", "tuberlin", "quickdraw"] = "tree"
    """tree: {sketch,photo}/<class>/*; the others in any of the layouts they are passed around in."""
    split: str | None = None
    """Named split of the data set: sketchy-2 (or just 2), sketchy-1, sketchy-1-sempcyc, tuberlin, tuberlin-sempcyc,
    tuberlin-kdsbir, quickdraw, quickdraw-kdsbir; none: sketchy-2, tuberlin, quickdraw."""
    extended: bool = True
    """Sketchy: all 73,002 photos, or only the 12,500 that were drawn from (fine-grained)."""
    dedup: bool = True
    """Sketchy: count a photo once that both the basic and the extended folder hold."""
    captions: Path | None = None
    """Text file, one `class<TAB>words` a line: how classes are written in prompts."""
    unseen: tuple[str, ...] = ()
    """Test classes, never trained on. Default: those of split; of a tree, its dataset.json or val/, else a seeded
    choice."""
    unseen_fraction: float = 0.2
    """Share of the classes that become unseen when neither this file nor the tree names them."""
    validation: tuple[str, ...] = ()
    """Seen classes held out to choose the best checkpoint. Default: dataset.json, else a seeded choice."""
    validation_classes: int | None = None
    """How many to hold out when nothing names them; none: a sixth, at most 12; 0: none, the last step is the best."""
    split_seed: int = 0
    """Seed of the choices above."""
    fit: Literal["pad", "stretch", "crop"] = "pad"
    """How a picture becomes square: white borders, stretched, or its centre."""
    crop_sketches: bool = False
    """Crop every sketch to its ink plus a small border before it becomes square."""
    augment: Literal["none", "light", "strong"] = "light"
    """Random flips, affine maps, colours, stroke widths and cut-outs in training."""
    sample_fraction: float = 1.0
    """Share of each seen class's sketches and photos to train on, chosen by split_seed."""
    class_fraction: float = 1.0
    """Share of the seen classes to train on, chosen by split_seed."""
    memory_gb: float = 2.0
    """A list of pictures is decoded once and kept if it fits in this many GB, else decoded for every use."""
    cache: Path | None = None
    """Folder for decoded pictures: memory-mapped, made once, used by later runs, may be larger than memory."""


@dataclass
class PromptConfig:
    """Prompt tokens of both towers (paper, section 3)."""

    text_tokens: int = 4
    """m: tokens that B_t makes of the patch embeddings, for every text layer; 0 turns B_t off. MaPLe: its tokens."""
    words: bool = True
    """B_v: the template's words as visual prompt tokens, the same in every layer."""
    layer_tokens: int = 2
    """n: tokens that B_vt makes of each text layer's states; 0 turns B_vt off."""
    visual_tokens: int = 3
    """CLIP-AT: learned tokens of each modality at the visual input."""
    depth: int | None = None
    """Layers that get prompts, counted from the input; none: all."""
    template: str = "{modality} of a"
    """Words before the class name; {modality} is sketch or photo."""
    conditioning: Literal["modality", "instance"] = "modality"
    """What B_t sees: the mean patch embedding of a modality (constants after training), or each image's own (slow)."""
    ema: float = 0.99
    """Decay of the average patch embedding that stands for a modality after training."""


@dataclass
class LossConfig:
    """L = triplet * L_triplet + classification * L_class + jigsaw * L_cjs (+ divergence * L_delta)."""

    triplet: float = 1.0
    """Weight of the triplet loss."""
    classification: float = 1.0
    """Weight of the cross-entropy against the prompted class texts (alpha)."""
    jigsaw: float = 0.1
    """Weight of the jigsaw loss (beta)."""
    divergence: float = 0.0
    """Weight of CLIP-AT's f-divergence between the classes' relative distances; needs per_class of 2 or more."""
    logit_scale: float | None = None
    """Inverse temperature of the cross-entropy; none: the backbone's own."""
    margin: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive: cosine of the two classes' frozen texts (1 for the same class); fixed: fixed_margin."""
    fixed_margin: float = 0.2
    """Margin of the triplet loss when it is fixed, and of the permuted triplet."""
    negatives: Literal["random", "semi-hard"] = "random"
    """The negative photo: the one drawn, or the nearest of the batch (of its part, if it is computed in parts)
    that is further away than the positive."""
    jigsaw_form: Literal["conditional", "permuted-triplet"] = "conditional"
    """SpLIP's conditional cross-modal jigsaw, or CLIP-AT's triplet of shuffled pictures."""
    permutations: int = 100
    """|Y|: tile permutations in the bank, chosen to differ in as many places as possible."""
    tiles: Literal[2, 3] = 3
    """Tiles per side of the jigsaw."""
    jigsaw_width: int = 256
    """Width of F_js; 32 a head."""


@dataclass
class TrainConfig:
    """Train SpLIP, or a baseline, on the seen classes of a data set."""

    out: Path = Path("runs/splip")
    """Folder of the run: config.yaml, best.pt, last.pt, log.csv, skipped.txt."""
    resume: bool = False
    """Continue the run in --out from last.pt."""
    method: Literal["splip", "zero-shot", "clip-ln", "clip-at", "maple"] = "splip"
    """zero-shot trains nothing, clip-ln LayerNorms only; `--config clip-at` and `--config maple` set their recipes."""
    setting: Literal["category", "fine-grained"] = "category"
    """What a sketch is to find: photos of its class, or the photo it was drawn from."""
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train_layernorm: bool = True
    """Train the LayerNorms of the visual tower."""
    train_text_layernorm: bool = True
    """Train the LayerNorms of the text tower."""
    train_backbone: bool = False
    """Train all weights but the word embeddings, and a BatchNorm after each tower: for random weights."""
    positives: Literal["class", "instance"] = "class"
    """The positive photo: any of the sketch's class, or one of the same instance (always so when fine-grained)."""
    sampling: Literal["uniform", "class", "instance"] = "uniform"
    """Every sketch once an epoch (but for the last partial batch), or classes or instances drawn with equal chances."""
    per_class: int = 1
    """Sketches of a class in a batch come in groups of this size; above 1, they are drawn anew for each batch."""
    epochs: int = 60
    """Passes over the sketches."""
    steps: int | None = None
    """Optimiser steps; overrides epochs."""
    batch_size: int = 64
    """Sketches per step, over all processes; each brings one positive and one negative photo."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other, to save memory; BatchNorms see parts."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products in bfloat16 (autocast), weights and losses in float32."""
    lr: float = 1e-3
    """Peak learning rate of Adam."""
    layernorm_lr: float | None = None
    """Peak learning rate of the backbone's LayerNorms; none: lr."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW) of the matrices."""
    warmup: int = 50
    """Steps of linear warm-up, then the rate follows a cosine down to a hundredth."""
    eval_every: int = 100
    """Steps between measurements on the validation classes; the best checkpoint is kept."""
    tensorboard: bool = False
    """Also log to TensorBoard in --out."""
    seed: int = 0
    """Seed of the new weights, the batches and the augmentation."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""


@dataclass
class PretrainConfig:
    """Train a small CLIP from pictures and their names: splip-tiny's weights."""

    pictures: Path
    """Folder with pictures.csv (path, thing, name, class), as tools/build_pictures.py writes it."""
    out: Path = Path("runs/splip-tiny")
    """Folder of the run: config.yaml, last.pt, log.csv, weights.safetensors."""
    resume: bool = False
    """Go on with a run that was stopped."""
    backbone: str = "splip-tiny"
    """Architecture to train, from random weights."""
    sample: Path | None = None
    """The sample data (splip data sample): its validation classes are measured while training, and learned by nothing."""
    steps: int = 12_000
    """Steps for the visual tower."""
    text_steps: int = 2_000
    """Steps for the text tower, afterwards: it is fitted to what the visual tower sees."""
    batch_size: int = 96
    """Pictures in a step; every picture is another thing, in one of its designs."""
    lr: float = 2e-3
    """Peak learning rate; cosine decay."""
    weight_decay: float = 0.05
    """AdamW's, on matrices."""
    warmup: int = 200
    """Steps of linear warm-up."""
    scale: float = 16.0
    """Inverse temperature of the cosine between a picture and the prototypes of things and classes."""
    class_weight: float = 0.5
    """Weight of the loss on classes beside the one on things."""
    outlines: float = 0.2
    """Share of pictures that are shown as their edges, dark on white."""
    ema: float = 0.999
    """Decay of the averaged weights, which are what is saved."""
    eval_every: int = 500
    """Steps between two checkpoints."""
    compile: bool = False
    """Compile the visual tower (needs a C++ compiler): about a third faster on a CPU."""
    seed: int = 0
    """Seed of weights, batches and augmentation."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass
class EvalConfig:
    """Measure retrieval on classes that training never saw; print a table, write results and pictures."""

    checkpoint: Path
    """best.pt of a run."""
    root: Path | None = None
    """Folder of the data set; default: the one the checkpoint was trained on."""
    dataset: Literal["tree", "sketchy", "tuberlin", "quickdraw"] | None = None
    """Test on another data set, with its own split; default: the kind the checkpoint was trained on."""
    split: str | None = None
    """Named split of the data set; default: the checkpoint's, or the usual one of another data set."""
    classes: Literal["unseen", "validation"] = "unseen"
    """Which of the held-out classes to measure."""
    protocol: Literal["zs", "gzs", "fg"] = "zs"
    """zs: photos of the same classes; gzs: photos of seen classes among them; fg: find the very photo."""
    gallery: tuple[Literal["sempcyc", "per-class-20", "all", "per-class"], ...] = ()
    """gzs: sempcyc (default), per-class-20, all; fg: per-class, all (default: both). See the README."""
    k: tuple[int, ...] = ()
    """Ranks of mAP@k and P@k (fg: Acc@k). Default: P@10 for a tree, 100 200 for the benchmarks; fg: 1 5 10."""
    metrics: Literal["standard", "all"] = "standard"
    """all: mAP@k with each denominator and interpolated, P@k with both."""
    seed: int = 0
    """Seed of the seen photos of gzs, and of ties in the choice of queries for pictures."""
    baselines: bool = False
    """Also measure chance, raw pixels, HOG (needs scikit-image) and the plain backbone."""
    out: Path | None = None
    """Folder for results.json, per_class.csv, gallery.txt, confusion.png and best, median and worst.png."""
    json: Path | None = None
    """Write the results to this file."""
    grid: Path | None = None
    """Write a picture of some queries and what they find to this file."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""


@dataclass
class IndexAddConfig:
    """Embed the pictures of folders and keep them in a gallery; pictures that it holds unchanged are passed over."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of pictures, searched through all levels but for hidden ones, single pictures, tar files of pictures
    (WebDataset), or @FILE as --list FILE."""
    gallery: Path
    """Folder of the gallery; made if it is not there."""
    model: Path | None = None
    """Checkpoint (best.pt; a copy goes into a new gallery) or export folder. Default: the gallery's own."""
    list: tuple[Path, ...] = ()
    """Files with one path a line, or ended by zero bytes as `find -print0` does; relative ones from the list's folder."""
    label_from: Literal["folder", "top", "none"] = "folder"
    """The label of a picture: its folder's name, the name of the first folder below the one given, or none."""
    label: str | None = None
    """One label for all instead."""
    tag: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """KEY=VALUE for all of these pictures."""
    batch_size: int = 64
    """Pictures per pass of the encoder."""
    threads: int | None = None
    """Threads that read and decode; none: one for each processor."""
    memory_gb: float = 1.5
    """For all pictures that are being read, files and pixels; one that needs more is read alone."""
    engine: str = "auto"
    """What encodes: auto, torch, compile, onnxruntime, openvino, tensorrt; or ray: the machines of a Ray cluster."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    encoder: str = "auto"
    """With --engine ray, what encodes on the machines: auto, torch, compile, onnxruntime, openvino, tensorrt."""
    address: str = "auto"
    """With --engine ray: HOST:PORT of the cluster's head; auto: the cluster that this machine belongs to; local: one made
    of this machine for as long as the command runs."""
    workers: int | None = None
    """With --engine ray: processes that encode; none: one for each GPU, without GPUs one for each machine."""


@dataclass
class IndexRemoveConfig:
    """Take pictures out of a gallery; their files stay. Conditions beside each other must all hold."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, or folders of them."""
    gallery: Path
    """Folder of the gallery."""
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Those with this label."""
    tag: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Those with this tag, KEY=VALUE."""
    under: Path | None = None
    """Those in this folder, at any depth."""
    missing: bool = False
    """Those whose files are gone."""
    dry_run: bool = False
    """Only print what would be taken out."""


@dataclass
class IndexListConfig:
    """Print what a gallery holds: id, label, path and tags of each picture."""

    gallery: Path
    """Folder of the gallery."""
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only pictures with this label."""
    tag: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only pictures with this tag, KEY=VALUE."""
    under: Path | None = None
    """Only pictures in this folder, at any depth."""
    labels: bool = False
    """Print the labels and how many pictures have each instead."""
    json: bool = False
    """Print JSON, one object a line."""


@dataclass
class IndexCheckConfig:
    """Compare a gallery with its checksums; exit code 1 if anything is damaged."""

    gallery: Path
    """Folder of the gallery."""
    pictures: bool = True
    """Also look whether the files of its pictures are still there."""
    json: bool = False
    """Print JSON."""


@dataclass
class IndexCompactConfig:
    """Give back the room of removed pictures."""

    gallery: Path
    """Folder of the gallery."""


@dataclass
class IndexExportConfig:
    """Write the vectors (vectors.npy) and what is known of the pictures (items.csv or items.parquet) to a folder."""

    gallery: Path
    """Folder of the gallery."""
    out: Path
    """Folder to make."""
    format: Literal["csv", "parquet"] = "csv"
    """parquet needs pyarrow."""
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only pictures with this label."""
    tag: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only pictures with this tag, KEY=VALUE."""
    under: Path | None = None
    """Only pictures in this folder, at any depth."""


@dataclass
class IndexPushConfig:
    """Make a Milvus collection hold what a gallery holds; what is there unchanged is passed over."""

    gallery: Path
    """Folder of the gallery."""
    to: str
    """milvus://HOST:PORT/COLLECTION, or milvus:FILE.db/COLLECTION for Milvus Lite; made if it is not there. Options behind
    a ?: database=NAME, tls=on, consistency=bounded. The environment's MILVUS_TOKEN is user:password or a key."""
    replace: bool = False
    """Drop a collection that another gallery or another model filled."""


@dataclass
class SearchConfig:
    """Find the pictures of a gallery that match a drawing, a picture, words, or a drawing and words together."""

    gallery: str
    """Folder of the gallery, see `splip index add`, or the milvus: address of a collection, see `splip index push`."""
    sketch: tuple[Path, ...] = ()
    """One or more drawings, dark on white or on transparency."""
    photo: tuple[Path, ...] = ()
    """One or more pictures to find similar ones of."""
    text: tuple[str, ...] = ()
    """What is to be seen, e.g. 'red car': the model reads it as `photo of a red car`. Beside drawings or pictures: one for
    all, or one for each."""
    text_weight: float = 0.5
    """Share of the words in a query of both: 0 is the drawing alone, 1 the words alone."""
    k: int = 10
    """Pictures to find per query."""
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only pictures with this label; given several times, with one of them."""
    tag: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only pictures with this tag, KEY=VALUE; given several times, with all of them."""
    under: Path | None = None
    """Only pictures in this folder, at any depth."""
    json: bool = False
    """Print JSON instead of a table."""
    grid: Path | None = None
    """Write the queries and what they find as a picture to this file."""
    model: Path | None = None
    """Checkpoint or export folder to use in place of the gallery's own; must be of the same model. Milvus has none."""
    engine: str = "auto"
    """What encodes the queries: auto, torch, compile, onnxruntime, openvino, tensorrt; or ray: see `splip serve`."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    encoder: str = "auto"
    """With --engine ray, what encodes the queries."""
    address: str = "auto"
    """With --engine ray: HOST:PORT of the cluster's head, auto or local."""
    shards: int | None = None
    """With --engine ray: parts of the gallery; none: one for each machine."""


@dataclass
class ServeConfig:
    """Serve a gallery over HTTP, with a page to draw on."""

    gallery: str
    """Folder that `splip index add` wrote, or the milvus: address of a collection, see `splip index push`."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 and :: are reachable from elsewhere."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    engine: str = "auto"
    """What encodes the queries: torch, compile, onnxruntime, openvino, tensorrt; auto takes the best that is there. Or ray:
    the gallery is searched by the machines of a Ray cluster."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    encoder: str = "auto"
    """With --engine ray, what encodes the queries: auto, torch, compile, onnxruntime, openvino, tensorrt."""
    address: str = "auto"
    """With --engine ray: HOST:PORT of the cluster's head; auto: the cluster that this machine belongs to; local: one made
    of this machine for as long as it serves."""
    shards: int | None = None
    """With --engine ray: parts of the gallery, each searched by a process of its own; none: one for each machine."""
    replicas: int = 1
    """With --engine ray: processes for each part; with two, one may die unnoticed."""
    model: Path | None = None
    """Encode with this checkpoint or export folder of the gallery's model; none: the gallery's own."""
    token_file: Path | None = None
    """File with the API token, readable by its owner only; without one nothing can be added or removed."""
    protect: Literal["writes", "all"] = "writes"
    """What needs the token: adding and removing, or searching and looking too."""
    allow_root: tuple[Path, ...] = ()
    """Folders below which pictures may be added over HTTP; none: adding is off."""
    allow_host: tuple[str, ...] = ()
    """Names that the Host header may have; default: those of this machine when only it can connect, else any."""
    behind_proxy: bool = False
    """A proxy in front sets X-Forwarded-For and X-Forwarded-Proto: clients' addresses and TLS are known from them."""
    cors: tuple[str, ...] = ()
    """Origins of other sites whose pages may use the service, e.g. https://example.org."""
    window_ms: float = 3.0
    """Time that a search waits at most for others to be encoded with."""
    max_batch: int = 32
    """Searches that are encoded together; 1 turns batching off."""
    max_queue: int = 256
    """Searches on the way at once; further ones get 429."""
    max_per_client: int | None = None
    """How many of them may come from one address; further ones get 429; none: half of --max-queue."""
    timeout_s: float = 15.0
    """Time for the answer to a search; then 503."""
    body_timeout_s: float = 10.0
    """Time for a client to send its request's body; then 408."""
    max_body_mb: float = 10.0
    """Size of a request's body; above it 413."""
    max_megapixels: float = 40.0
    """Pixels of an uploaded picture, by its header; above it 413."""
    max_k: int = 200
    """Photos that a search may ask for."""
    max_queries: int = 64
    """Searches in one request to /v1/search/batch."""
    threads: int | None = None
    """Threads that decode pictures; none: one for each processor."""
    refresh_s: float = 2.0
    """How often the counts and labels are read anew."""
    show_paths: bool | None = None
    """Whether answers tell where a photo's file is; default: only when only this machine can connect."""
    thumbnails_mb: float = 64.0
    """Memory for thumbnails."""
    log: Literal["text", "json"] = "text"
    """Form of the lines on stderr; none of them holds anything of a query."""


@dataclass
class SampleConfig:
    """Unpack the sample data set: 738 things, three sketches and three pictures of each."""

    out: Path
    """Folder to write sketch/<class>/ and photo/<class>/ into."""


@dataclass
class CheckConfig:
    """Say what a data set holds; of Sketchy, TU-Berlin and QuickDraw also what it should hold."""

    root: Path
    """Folder of the data set or its parent; for a tree, the one that holds sketch/ and photo/."""
    dataset: Literal["tree", "sketchy", "tuberlin", "quickdraw"] = "tree"
    """tree: {sketch,photo}/<class>/*; the others in any layout that data.dataset reads."""
    split: str | None = None
    """Named split to count for, e.g. sketchy-2 or 2; none: the usual one."""
    extended: bool = True
    """Sketchy: expect the extended photos too, or only the 12,500 that were drawn from."""
    decode: bool = False
    """Decode every picture and list those that cannot be read."""


@dataclass
class DemoConfig:
    """The whole way on the sample data: unpack, train, measure, index, search, and a page to look at."""

    out: Path = Path("demo")
    """Folder of the results; what exists in it is used again."""
    steps: int | None = None
    """Training steps; default: those of the configuration `sample`."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""


@dataclass
class SweepConfig:
    """Train and measure a row of configurations, each over several seeds, and make a table and a plot of it."""

    rows: tuple[str, ...]
    """Configurations that each change something: shipped names (ablations/* for all of a folder) or files.
    The plot compares with the one called full, else with the first."""
    config: tuple[str, ...] = ()
    """Configurations that all rows start from."""
    set: tuple[str, ...] = ()
    """Settings of all rows, e.g. data.root=sample steps=300; they win over the files."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every row; the seed changes new weights, batches and augmentation."""
    out: Path = Path("runs/sweep")
    """Folder of the runs, table.md, results.json and plot.png; finished runs in it are used again."""
    protocol: Literal["zs", "gzs", "fg"] = "zs"
    """What is measured on the unseen classes, see `splip eval`."""
    metric: str = "mAP@all"
    """The metric that the plot shows."""
    jobs: int = 1
    """Runs at the same time, each with its share of the CPU's cores."""


@dataclass
class ExportConfig:
    """Write the sketch and photo encoders of a checkpoint as verified files that run without training code."""

    checkpoint: tyro.conf.Positional[Path]
    """best.pt of a run."""
    out: Path
    """Folder to write: sketch.* and photo.*, export.json, and a model card README.md."""
    onnx: bool = False
    """Write ONNX files; the default when no other format is named, and always with --trt."""
    trt: bool = False
    """Build engines with TensorRT, else with TensorRT-RTX, which needs no GPU for it (they are marked "built, not
    run"). Where neither can build, the ONNX files are written and the exit code is 3."""
    openvino: bool = False
    """Write OpenVINO's own files: the fastest on a CPU."""
    text: bool = False
    """Also the text tower, so that galleries of this export are searched by words too: text.onnx, fp32, run on the CPU
    by onnxruntime or OpenVINO whatever the images run in."""
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    """Of the blocks' matrix products; pixels, residuals, LayerNorms and the last projection stay in fp32. OpenVINO
    computes fp32 files in bf16 where the CPU has AMX and the verification allows it."""
    batch: str = "1:8:64"
    """Fewest, usual and most images per call, min:opt:max; larger batches are split."""
    fuse_preprocess: bool = False
    """Take uint8 pixels [B, S, S, 3] and normalise them in the graph, instead of normalised float32 [B, 3, S, S]."""
    opset: int | None = None
    """ONNX opset, 18 to 23; none: 20, and 23 for bf16."""
    images: Path | None = None
    """Pictures to verify with: a folder that holds sketch/ and photo/, or any pictures; none: the sample data. Files
    whose features differ too much are kept as *.rejected, and the exit code is 1."""
    calibration: Path | None = None
    """int8: pictures like those to be searched, laid out as for --images, or sample."""
    compute_capability: tuple[str, ...] = ()
    """TensorRT-RTX: kinds of GPUs to build for, e.g. 8.6 8.9 12.0; none: the GPU here, else the library's list."""
    hardware_compatible: Literal["none", "ampere+", "same"] = "none"
    """TensorRT: let the engine run on other GPUs too: from Ampere on, or of the same compute capability."""
    version_compatible: bool = False
    """TensorRT: let later versions of the library run the engine."""
    timing_cache: Path | None = None
    """TensorRT: file that remembers measured kernels between builds; needs a GPU."""
    overwrite: bool = False
    """Replace an existing export."""


@dataclass
class InfoConfig:
    """Print versions, instruction sets, the CUDA build and GPUs; paste it in a bug report."""


# ---- YAML ----


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain YAML values."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def from_dict(cls: type[T], values: Any, source: str, prefix: str = "") -> T:
    """Fill a dataclass; unknown keys and wrong types are a UserError that names them."""
    if not isinstance(values, dict):
        raise UserError(f"{source}: {prefix.rstrip('.') or 'the file'} must be a mapping, got {short(values)}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            known = ", ".join(hints)
            raise UserError(f"{source}: unknown key {short(f'{prefix}{key}')}; known keys: {known}")
    filled = {key: _convert(hints[key], value, source, prefix + key) for key, value in values.items()}
    return cls(**filled)


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type[Any], hint), value, source, key + ".")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, source, key)
    if origin is Literal:
        if value in args:
            return value
        raise UserError(f"{source}: {key} must be one of {', '.join(map(str, args))}, got {short(value)}")
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_convert(args[0], v, source, key) for v in value)
        raise UserError(f"{source}: {key} must be a list, got {short(value)}")
    if hint is float and not isinstance(value, bool):
        try:  # PyYAML reads 2e-3 as a string
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    elif hint is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    elif hint is int and type(value) is int and not -(2**63) <= value < 2**63:
        raise UserError(f"{source}: {key} is too large: {short(value)}")
    elif type(value) is hint:
        return value
    name = "a path" if hint is Path else hint.__name__
    raise UserError(f"{source}: {key} must be {name}, got {short(value)}")


def shipped() -> dict[str, Path]:
    """The configurations in the package by name, e.g. ``sample``, ``ablations/no-b_t``."""
    return {p.relative_to(CONFIGS).with_suffix("").as_posix(): p for p in sorted(CONFIGS.rglob("*.yaml"))}


def find(path: str) -> Path:
    """A YAML file, or a shipped configuration by its name.

    Raises:
        UserError: neither.
    """
    file = shipped().get(path, Path(path))
    if not file.is_file():
        names = ", ".join(name for name in shipped() if "/" not in name)
        raise UserError(f"no configuration {path}: not a file, and the shipped ones are {names}, ablations/*")
    return file


def read(path: str) -> dict[str, Any]:
    """The settings of a YAML file, or of a shipped configuration, as they stand there."""
    file = find(path)
    if file.stat().st_size > LARGEST:
        raise UserError(f"{file}: {file.stat().st_size:,} bytes are too many for a configuration")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (
        yaml.YAMLError,
        ValueError,
        ArithmeticError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        # Besides its own class PyYAML lets through what making a number, a date or a truth value of a text raises.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file}: not valid YAML: {reason}") from None
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{file}: the file must be a mapping, got {short(values)}")
    return values or {}


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """Both, and where they disagree what ``high`` says."""
    out = dict(low)
    for key, value in high.items():
        before = out.get(key)
        out[key] = merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return out


def load(cls: type[T], *paths: str) -> T:
    """Read YAML files, or shipped configurations by their names; the later win."""
    values: dict[str, Any] = {}
    for path in paths:
        from_dict(cls, read(path), str(find(path)))  # an error names its own file
        values = merge(values, read(path))
    return from_dict(cls, values, ", ".join(paths))


def save(config: Any, path: Path) -> None:
    disk.write_text(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def differences(a: Any, b: Any) -> list[str]:
    """Settings that differ, as ``key: old -> new``."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in values.items():
            out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return out

    old, new = flat(to_dict(a)), flat(to_dict(b))
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in new if old.get(key) != new.get(key)]
