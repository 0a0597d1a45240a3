"""The stages in order, what each needs and how long it may take. No torch here: the driver imports it."""

from typing import NamedTuple

SECONDS = 480.0  # for everything


class Stage(NamedTuple):
    """Run by a worker process that is killed after `limit` seconds."""

    name: str
    function: str  # module.function
    estimate: float  # seconds on an H100 with 16 cores and no open_clip, the worker's imports (7) included
    limit: float
    needs: tuple[str, ...] = ("build",)  # stages without which it says nothing
    gpu: bool = True


STAGES = (
    Stage("build", "gpu.build.build", 45, 150, (), gpu=False),
    Stage("smoke", "gpu.smoke.smoke", 20, 60),
    Stage("wgmma", "gpu.smoke.wgmma", 15, 40),
    Stage("ceilings", "gpu.ceilings.ceilings", 14, 40, ()),
    Stage("headline", "gpu.headline.headline", 125, 180, ("build", "ceilings")),
    Stage("sweep", "gpu.sweep.sweep", 38, 60, ("build", "ceilings")),
    Stage("memcheck", "gpu.sanitizer.memcheck", 35, 70),
    Stage("ncu", "gpu.profile.ncu", 35, 70),
    Stage("tests", "gpu.cuda_tests.cuda_tests", 50, 110),
    Stage("rounding", "gpu.rounding.rounding", 10, 25),
    Stage("layernorm", "gpu.layernorm.layernorm", 14, 30, ("build", "ceilings")),
    Stage("patchify", "gpu.patchify.patchify", 14, 30, ("build", "ceilings")),
    Stage("training", "gpu.encoder.training", 2, 45),
    Stage("compiled", "gpu.compiled.compiled", 30, 60, ("build", "ceilings")),
    Stage("tensorrt", "gpu.encoder.tensorrt", 2, 60),
)
BY_NAME = {stage.name: stage for stage in STAGES}


def choose(only: list[str] | None, have: set[str]) -> list[Stage]:
    """All, or those asked for with what they need; `have`: stages whose findings are there already."""
    if only is None:
        return [stage for stage in STAGES if stage.name not in have]
    wanted = set(only)
    while more := {need for name in wanted for need in BY_NAME[name].needs} - wanted - have:
        wanted |= more
    return [stage for stage in STAGES if stage.name in wanted]
