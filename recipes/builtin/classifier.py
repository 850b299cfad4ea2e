"""A small network that names the sky of a picture. It learns from rendered pictures only, in about a minute."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msdv.data.synthetic import TIMES, render, sample_sky

NAMES = tuple(TIMES)
ASKED = ("day", "sunset", "night", "overcast")
SIDE = 64  # pixels that it sees
SKIES = 1800  # to learn from, as many of each name, two pictures each
STEPS, BATCH, LR = 400, 64, 2e-3
SEED = 31_000


class Classifier:
    """Names skies."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network.eval()

    @torch.no_grad()
    def name(self, frames: np.ndarray, among: Sequence[str] = NAMES) -> list[str]:
        """The sky of each of the frames (n, h, w, 3), uint8: the likeliest of the names in `among`."""
        scores = torch.cat([self._network(part) for part in torch.split(_shrunk(frames), 256)])
        return [among[i] for i in scores[:, [NAMES.index(name) for name in among]].argmax(1).tolist()]


def get_classifier(file: Path) -> Classifier:
    """The one that is kept in `file`; if there is none, it is trained first."""
    network = _build()
    if file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
    else:
        _train(network)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), file)
    return Classifier(network)


def labelled_pictures(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Two pictures, 5 seconds apart, of each of `count` rendered skies (2 count, 128, 128, 3), and their names, each as
    often as the others."""
    rng, pictures, names = random.Random(seed), [], []
    for index in range(count):
        name = NAMES[index % len(NAMES)]
        sky = sample_sky(rng)
        while sky.time != name:
            sky = sample_sky(rng)
        pictures.append(render(sky, 2, fps=1 / 5))
        names += [name] * 2
    return np.concatenate(pictures), names


def _build() -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 48), (48, 64)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, len(NAMES)))


def _shrunk(frames: np.ndarray) -> Tensor:
    """Frames (n, h, w, 3) as the network takes them: (n, 3, SIDE, SIDE), -1 to 1."""
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.interpolate(pictures, size=(SIDE, SIDE), mode="area")


def _train(network: nn.Sequential) -> None:
    frames, names = labelled_pictures(SKIES, SEED)
    pictures, labels = _shrunk(frames), torch.tensor([NAMES.index(name) for name in names])
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        for part in network:
            if isinstance(part, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                part.reset_parameters()
        optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=STEPS)
        for _ in range(STEPS):
            chosen = torch.randint(0, len(pictures), (BATCH,))
            batch = pictures[chosen]
            batch = batch.flip(-1) if torch.rand(()) < 0.5 else batch
            if torch.rand(()) < 0.5:  # as soft as what the autoencoder leaves
                batch = F.interpolate(F.avg_pool2d(batch, 2), scale_factor=2, mode="bilinear")
            # A picture is named by what it shows, not by the last few levels of its colours.
            batch = batch + 0.03 * torch.randn(BATCH, 3, 1, 1) + 0.03 * torch.randn_like(batch)
            loss = F.cross_entropy(network(batch), labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    network.eval()
