"""What a search changes of a run: mesh, remat, micro-batches, batch."""

import dataclasses

from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.planning.compile import Run


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the search changes of a run."""

    mesh: MeshConfig
    remat: str
    num_microbatches: int
    batch_size: int

    def apply(self, run: Run) -> Run:
        steps = max(1, round(run.total_steps * run.batch_size / self.batch_size))
        return dataclasses.replace(
            run,
            model=dataclasses.replace(run.model, remat=self.remat),
            mesh=self.mesh,
            num_microbatches=self.num_microbatches,
            batch_size=self.batch_size,
            total_steps=steps,  # the same budget of tokens
        )

    @property
    def text(self) -> str:
        axes = [f.name for f in dataclasses.fields(MeshConfig) if f.name != "fsdp_split"]
        sizes = [f"{axis}={n}" for axis in axes if (n := getattr(self.mesh, axis)) != 1]
        split = getattr(self.mesh, "fsdp_split", None)
        fsdp = f" ({'x'.join(map(str, split))})" if split else ""
        return f"{' x '.join(sizes) or 'one chip'}{fsdp}"
