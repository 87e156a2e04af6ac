"""`dsmooth cluster`: labels that images give themselves, as a file and a picture."""

from __future__ import annotations

from ..data.reading import LABELS_FILE
from ..distributed import process_group, rank_and_size
from ..evaluate.clusters import write_clusters
from ..files import check_writable
from ..machine import choose_device, use_threads
from ..pretrained import load
from .options import Cluster
from .shared import choose_data


def cluster(options: Cluster) -> None:
    """Run `dsmooth cluster`. Raises ValueError or FileNotFoundError before any work."""
    path = options.out / LABELS_FILE
    check_writable(path)
    with process_group():
        use_threads(options.execution.threads)
        device = choose_device(options.execution.device)
        models = load(*options.models, device=device).checked()
        noisy, choice = models.noisy, choose_data(models, options.dataset)
        datasets = [choice.load(split) for split in ("train", "test")]
        write_clusters(noisy, datasets, options.clusters, options.seed, path)
    if rank_and_size()[0] == 0:
        print(f"next: `dsmooth train noisy --labels {path} --label-dropout 0.1`")
